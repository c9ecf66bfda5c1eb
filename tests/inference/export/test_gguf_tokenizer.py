"""Tokenizers in GGUF: llama.cpp makes the ids that training made, or the tokenizer is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import Tokenizer, load_tokenizer
from questtrain.inference.export.gguf_file import add_tokenizer
from questtrain.inference.export.gguf_tokenizer import (
    GPT2,
    LLAMA3,
    QWEN2,
    refusal,
    vocabulary,
)
from questtrain.inference.export.passages import TEXTS

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

ALPHABET = "aeiourstn  \n\t.,'01239éß中日🙂_(){}\"-=İﬁＡ　ıǅ"
SOURCES = ("argparse", "difflib", "typing")


def texts() -> list[str]:
    """Those of a certificate, and 200 that nobody would write."""
    chosen = random.Random(0)
    odd = ("".join(chosen.choices(ALPHABET, k=chosen.randint(1, 40))) for _ in range(200))
    return [*TEXTS, "a <tool> b<tool>c", *odd]


def ids_of_llama_cpp(tokenizer: Tokenizer, file: Path, words: Sequence[str]) -> list[list[int]]:
    """By a file with the tokenizer and a model of zeros."""
    from gguf import GGUFWriter

    from questtrain.inference.export.llama_cpp import LlamaCpp

    rows, width = tokenizer.vocab_size + 5, 32
    writer = GGUFWriter(None, "llama")
    numbers = {"context_length": 64, "embedding_length": width, "block_count": 1}
    for key, number in {**numbers, "feed_forward_length": width, "vocab_size": rows}.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    add_tokenizer(writer, vocabulary(tokenizer, rows), tokenizer.bos_id)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {f"blk.0.{name}": (width, width) for name in square}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "output_norm": (width,)}
    for name, shape in {**shapes, "token_embd": (rows, width), "output": (rows, width)}.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [*map(LlamaCpp(file, 64).encode, words)]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "corpus.txt"
    sources = (Path(os.__file__).with_name(f"{name}.py") for name in SOURCES)
    file.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources))
    return file


def json_tokenizer(corpus_file: Path, file: Path, pre: str, **settings: object) -> Tokenizer:
    """A byte-level BPE that splits text as ``pre`` says."""
    from tokenizers import AddedToken, Regex, models, normalizers, trainers
    from tokenizers import Tokenizer as Library
    from tokenizers import pre_tokenizers as steps

    whole = steps.ByteLevel(add_prefix_space=False)
    rest = steps.ByteLevel(add_prefix_space=False, use_regex=False)
    chosen = {
        "gpt-2": whole,
        "gpt-2, spelled": steps.Sequence([steps.Split(Regex(GPT2), "isolated"), rest]),
        "smollm": steps.Sequence([steps.Digits(individual_digits=True), whole]),
        "llama-bpe": steps.Sequence([steps.Split(Regex(LLAMA3), "isolated"), rest]),
        "qwen2": steps.Sequence([steps.Split(Regex(QWEN2), "isolated"), rest]),
        "a space first": steps.ByteLevel(add_prefix_space=True),
        "white space": steps.Sequence([steps.Whitespace(), whole]),
    }
    ignore_merges = settings.get("ignore_merges", pre == "llama-bpe")
    library = Library(models.BPE(ignore_merges=ignore_merges))
    library.pre_tokenizer = chosen[pre]
    if settings.get("lowercase"):
        library.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>"],
        initial_alphabet=steps.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(corpus_file.read_text().splitlines(keepends=True), trainer)
    library.add_tokens([AddedToken("<tool>", special=False)])
    library.save(str(file))
    return load_tokenizer(file)


@pytest.mark.parametrize("pre", ["gpt-2", "gpt-2, spelled", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizers(corpus_file: Path, tmp_path: Path, pre: str) -> None:
    tokenizer = json_tokenizer(corpus_file, tmp_path / "tokenizer.json", pre)
    assert vocabulary(tokenizer, tokenizer.vocab_size).pre == pre.split(",")[0]
    words = texts()
    found = ids_of_llama_cpp(tokenizer, tmp_path / "model.gguf", words)
    assert found == [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(words)]


@pytest.mark.parametrize(
    ("pre", "settings", "reason"),
    [
        ("a space first", {}, "puts a space before a text"),
        ("white space", {}, "llama.cpp has no name for"),
        ("gpt-2", {"lowercase": True}, "normalizes text (Lowercase)"),
        ("gpt-2", {"ignore_merges": True}, "ignore_merges=True"),
        ("llama-bpe", {"ignore_merges": False}, "ignore_merges=False"),
    ],
)
def test_json_that_llama_cpp_reads_otherwise(
    corpus_file: Path, tmp_path: Path, pre: str, settings: dict[str, object], reason: str
) -> None:
    tokenizer = json_tokenizer(corpus_file, tmp_path / "tokenizer.json", pre, **settings)
    assert reason in (refusal(tokenizer) or "")


LIKE_LLAMA_2 = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}

SYMBOLS = ["<tool>", "return"]


def sentencepiece_tokenizer(corpus_file: Path, folder: Path, **settings: object) -> Tokenizer:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_file),
        model_prefix=str(folder / "tokenizer"),
        num_threads=1,
        minloglevel=2,
        **{"vocab_size": 600, **settings},
    )
    return load_tokenizer(folder / "tokenizer.model")


@pytest.mark.parametrize(
    "settings",
    [
        LIKE_LLAMA_2,
        {**LIKE_LLAMA_2, "split_digits": True, "allow_whitespace_only_pieces": True},
        {**LIKE_LLAMA_2, "add_dummy_prefix": False, "user_defined_symbols": SYMBOLS},
        {"model_type": "unigram"},
        {"model_type": "unigram", "normalization_rule_name": "identity"},
    ],
    ids=str,
)
def test_sentencepiece(corpus_file: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    tokenizer = sentencepiece_tokenizer(corpus_file, tmp_path, **settings)
    words = texts()
    found = ids_of_llama_cpp(tokenizer, tmp_path / "model.gguf", words)
    assert found == [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(words)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "bpe"}, "without byte_fallback"),
        ({"model_type": "bpe", "byte_fallback": True}, "normalizes text (rule 'nmt_nfkc'"),
        ({"model_type": "unigram", "byte_fallback": True}, "unigram one with byte_fallback"),
        ({"model_type": "unigram", "add_dummy_prefix": False}, "add_dummy_prefix off"),
        ({**LIKE_LLAMA_2, "user_defined_symbols": SYMBOLS}, "after each of which"),
        ({"model_type": "unigram", "user_defined_symbols": SYMBOLS}, "after each of which"),
        ({**LIKE_LLAMA_2, "treat_whitespace_as_suffix": True}, "the space of a word after it"),
        ({"model_type": "char", "vocab_size": 90}, "words or characters"),
    ],
    ids=str,
)
def test_sentencepiece_that_llama_cpp_reads_otherwise(
    corpus_file: Path, tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    tokenizer = sentencepiece_tokenizer(corpus_file, tmp_path, **settings)
    assert reason in (refusal(tokenizer) or "")
