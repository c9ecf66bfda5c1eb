"""A model of ours as a GGUF file: the names of its tensors, its keys, written a tensor at a time.

llama.cpp turns neighbours (2i, 2i + 1) of a head by the rotary angle where we turn i and
i + width/2: the rows of Q and K are put in its order. Some keys it takes defaults for that are
wrong here: all that it could take are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from questtrain.config import intermediate_size
from questtrain.inference.export.gguf_tokenizer import UNKNOWN, Vocabulary, vocabulary
from questtrain.inference.export.source import Source

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter
    from gguf.gguf_reader import ReaderTensor

FILE = "model.gguf"

NAMES = {
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
}
"""Of a block's tensors, ours → GGUF's."""

OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
DENSE = {"f32": (0, 0), "f16": (1, 1), "bf16": (30, 32)}
"""dtype → number of a tensor's type, and of a file that is of it (general.file_type)."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name, its shape (rows first), the number of its type, its bytes,
    and what makes them when they are written."""

    name: str
    shape: tuple[int, ...]
    kind: int
    size: int
    data: Callable[[], np.ndarray]


def gguf_name(name: str) -> str:
    """``layers.0.attention.q_proj`` → ``blk.0.attn_q``."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}"


def is_turned(name: str) -> bool:
    """Whether a layer's rows are turned by rotary positions, and in llama.cpp's order."""
    return name.endswith(("q_proj", "k_proj"))


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """``[heads·width, …]``, halves of a head interleaved: row i beside row i + width/2."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def halves(rows: Tensor, heads: int) -> Tensor:
    """What `neighbours` has interleaved, as it was."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def in_file_order(source: Source, name: str, rows: Tensor) -> Tensor:
    """A layer's rows ``[N, …]`` as llama.cpp wants them."""
    return neighbours(rows, source.config.model.num_heads) if is_turned(name) else rows


def dense_entry(name: str, shape: Sequence[int], dtype: str, tensor: Callable[[], Tensor]) -> Entry:
    """A tensor as floating-point numbers."""
    kind, _ = DENSE[dtype]
    size = int(np.prod(shape)) * (4 if dtype == "f32" else 2)

    def data() -> np.ndarray:
        values = tensor().contiguous()
        match dtype:
            case "f32":
                return values.float().numpy()
            case "f16":
                return values.half().numpy()
            case _:
                return values.bfloat16().view(torch.int16).numpy()

    return Entry(name, tuple(shape), kind, size, data)


def around_the_blocks(source: Source, dtype: str) -> list[Entry]:
    """Embedding and head in ``dtype``, norms in F32, which llama.cpp demands."""
    entries = []
    for name in source.tensor_names():
        module = name.removesuffix(".weight")
        of = "f32" if module.endswith("norm") else dtype
        shape = source.shape(name)
        entries.append(
            dense_entry(f"{gguf_name(module)}.weight", shape, of, lambda n=name: source.tensor(n))  # type: ignore[misc]
        )
    return entries


def write_file(
    source: Source,
    folder: Path,
    entries: Sequence[Entry],
    file_type: int,
    architecture: str = "llama",
    more: Callable[[GGUFWriter], None] | None = None,
) -> None:
    """Write the model's keys, its tokenizer and ``entries``, one tensor in memory at a time.

    ``architecture`` is what the file says it is, ``more`` adds keys.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(None, architecture)
    _add_model(writer, source, file_type)
    rows = source.config.model.vocab_size
    assert rows is not None  # of a trained run
    _add_tokenizer(writer, vocabulary(source.tokenizer, rows), source.tokenizer.bos_id)
    if more is not None:
        more(writer)
    for entry in entries:
        # Types that the package has no name for are numbers all the same in the file.
        kind: GGMLQuantizationType = entry.kind  # type: ignore[assignment]
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.size, raw_dtype=kind
        )
    try:
        writer.write_header_to_file(folder / FILE)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(entry.data())
    finally:
        writer.close()


def _add_model(writer: GGUFWriter, source: Source, file_type: int) -> None:
    """The Llama's keys (``llama.…``), whatever architecture the file says it is."""
    config, model = source.config, source.config.model
    writer.add_name(str(config.name))
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_string("questtrain.bits", config.bits)
    writer.add_string("questtrain.method", config.quant.method)
    writer.add_uint32("questtrain.step", source.checkpoint.step)
    assert model.vocab_size is not None
    numbers = {
        "context_length": config.sequence_length,
        "embedding_length": model.hidden_size,
        "block_count": model.num_layers,
        "feed_forward_length": intermediate_size(model),
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.num_heads,
        "rope.dimension_count": model.hidden_size // model.num_heads,
        "vocab_size": model.vocab_size,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", model.norm_eps)
    writer.add_float32("llama.rope.freq_base", model.rope_theta)


def _add_tokenizer(writer: GGUFWriter, words: Vocabulary, bos: int) -> None:
    """A document ends where the next begins: BOS is EOS, as `questtrain generate` has it."""
    writer.add_tokenizer_model(words.model)
    if words.pre is not None:
        writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    for key, value in words.flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    if words.charsmap:
        writer.add_precompiled_charsmap(words.charsmap)
    if UNKNOWN in words.kinds:
        writer.add_unk_token_id(words.kinds.index(UNKNOWN))
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(bos)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


@lru_cache(maxsize=1)
def _opened(file: Path, changed: int) -> tuple[GGUFReader, dict[str, ReaderTensor]]:
    """A file, mapped into memory; ``changed`` tells it from one that was there before."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


def read_tensor(folder: Path, name: str) -> Tensor:
    """The matrix of a layer, fp32 ``[N, K]`` with the rows as we have them: what gguf's own
    dequantizers make of the file, times its ``.scale`` where there is one."""
    from gguf.quants import dequantize

    file = folder / FILE
    reader, tensors = _opened(file, file.stat().st_mtime_ns)
    base = gguf_name(name)
    found = tensors[f"{base}.weight"]
    values = torch.from_numpy(np.array(dequantize(found.data, found.tensor_type), np.float32))
    if f"{base}.scale" in tensors:
        values = values * float(tensors[f"{base}.scale"].data[0])
    if not is_turned(name):
        return values
    key = "head_count_kv" if name.endswith("k_proj") else "head_count"
    return halves(values, int(reader.fields[f"llama.attention.{key}"].contents()))
