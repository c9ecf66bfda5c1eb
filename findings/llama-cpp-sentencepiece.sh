#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549, "0.6.0-dev") encodes text with some SentencePiece models otherwise than SentencePiece
# 0.2.2 does, without a warning:
# - user-defined symbols: it puts a space before the text that follows one, as if a text began there;
# - a unigram model with byte_fallback: an unknown character becomes <unk>, not its bytes;
# - a unigram model without a dummy prefix: the key tokenizer.ggml.add_space_prefix=false is not honoured.
# A BPE model of Llama 2's kind, and a unigram one with the trainer's defaults, give equal ids.
# Seen: "llama-2 kind: equal, unigram: equal, symbols: other, unigram bytes: other, unigram no prefix: other".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check \
  xllamacpp==2026.10.11549 gguf==0.19.0 sentencepiece==0.2.2 protobuf==6.33.2 2>/dev/null
cd "$w" && "$w/venv/bin/python" - <<'P'
import ctypes
from pathlib import Path

import numpy as np
import sentencepiece
import xllamacpp
from gguf import GGUFWriter
from sentencepiece import sentencepiece_model_pb2

WORDS = "the ship went north and the other ship went south while nobody counted them in the morning light".split()
TEXTS = ["the ship", "a <tool> b<tool>c", "Köln 日", "north south"]
lib = ctypes.CDLL(str(next(Path(xllamacpp.__path__[0]).glob("xllamacpp*.so"))))
quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
lib.llama_log_set(quiet, None)


class Params(ctypes.Structure):  # passed by value; more room than the struct needs
    _fields_ = [("raw", ctypes.c_ubyte * 1024)]


lib.llama_model_default_params.restype = Params
lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = ctypes.c_void_p


def write(proto, file):
    size, rows = 32, len(proto.pieces)
    writer = GGUFWriter(None, "llama")
    numbers = dict(context_length=64, embedding_length=size, block_count=1, feed_forward_length=size)
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model({1: "t5", 2: "llama"}[proto.trainer_spec.model_type])
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    writer.add_bool("tokenizer.ggml.add_space_prefix", proto.normalizer_spec.add_dummy_prefix)
    writer.add_bool("tokenizer.ggml.remove_extra_whitespaces", proto.normalizer_spec.remove_extra_whitespaces)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}": (size, size) for name in names}
    shapes |= {"blk.0.attn_norm": (size,), "blk.0.ffn_norm": (size,), "output_norm": (size,)}
    shapes |= {"token_embd": (rows, size), "output": (rows, size)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file(file), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def ids(vocabulary, text):
    data, found = text.encode(), (ctypes.c_int32 * 256)()
    no = ctypes.c_bool(False)
    return list(found[: lib.llama_tokenize(vocabulary, data, len(data), found, 256, no, no)])


def equal(name, **settings):
    Path("corpus.txt").write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))) * 4)
    sentencepiece.SentencePieceTrainer.train(input="corpus.txt", model_prefix=name, minloglevel=2, **settings)
    ours = sentencepiece.SentencePieceProcessor(model_file=f"{name}.model")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(Path(f"{name}.model").read_bytes())
    write(proto, Path(f"{name}.gguf"))
    model = lib.llama_model_load_from_file(f"{name}.gguf".encode(), lib.llama_model_default_params())
    vocabulary = ctypes.c_void_p(lib.llama_model_get_vocab(ctypes.c_void_p(model)))
    return "equal" if all(ids(vocabulary, text) == ours.encode(text) for text in TEXTS) else "other"


llama2 = dict(model_type="bpe", vocab_size=300, byte_fallback=True, normalization_rule_name="identity",
              remove_extra_whitespaces=False)
unigram = dict(model_type="unigram", hard_vocab_limit=False)
found = {
    "llama-2 kind": equal("a", **llama2),
    "unigram": equal("b", **unigram, vocab_size=60),
    "symbols": equal("c", **llama2, user_defined_symbols=["<tool>"]),
    "unigram bytes": equal("d", **unigram, vocab_size=320, byte_fallback=True),
    "unigram no prefix": equal("e", **unigram, vocab_size=60, add_dummy_prefix=False),
}
print(", ".join(f"{name}: {value}" for name, value in found.items()))
raise SystemExit(0 if list(found.values()) == ["equal"] * 2 + ["other"] * 3 else 1)
P
