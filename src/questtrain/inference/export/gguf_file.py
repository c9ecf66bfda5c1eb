"""A model of ours as a GGUF file: the names of its tensors, its keys, written a tensor at a time.

Three of llama.cpp's architectures are ours: ``llama``; ``qwen2``, with biases of Q, K and V;
``qwen3``, with norms of the heads of Q and K. Its ``llama`` turns neighbours (2i, 2i + 1) of a head
by the rotary angle where we, and the other two, turn i and i + width/2: there the rows of Q and K
are put in its order. All keys that it has defaults for are written: some defaults are wrong here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from questtrain.config import ModelConfig, head_dim, intermediate_size, num_kv_heads
from questtrain.inference.export.gguf_blocks import TYPES, dequantize
from questtrain.inference.export.gguf_tokenizer import UNKNOWN, Vocabulary, vocabulary
from questtrain.inference.export.source import Source
from questtrain.model.rotary import rotary_frequencies

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

FILE = "model.gguf"

NAMES = {
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
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


def architecture(model: ModelConfig) -> str:
    """llama.cpp's name of the model's kind."""
    return "qwen3" if model.qk_norm else "qwen2" if model.qkv_bias else "llama"


def model_refusal(model: ModelConfig) -> str | None:
    """What no architecture of llama.cpp has."""
    if model.qkv_bias and model.qk_norm:
        return "model.qkv_bias and model.qk_norm are both on, and llama.cpp has one or the other."
    scaling = model.rope_scaling
    if scaling is not None and scaling.rope_type == "llama3" and architecture(model) != "llama":
        return (
            "model.rope_scaling.rope_type=llama3 goes with neither model.qkv_bias nor model.qk_norm"
            " in llama.cpp, which reads its factors for a llama alone."
        )
    return None


def is_reordered(kind: str, name: str) -> bool:
    """Whether a layer's rows are turned by rotary positions, and lie otherwise in the file."""
    return kind == "llama" and name.endswith(("q_proj", "k_proj"))


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
    model = source.config.model
    if not is_reordered(architecture(model), name):
        return rows
    heads = num_kv_heads(model) if name.endswith("k_proj") else model.num_heads
    return neighbours(rows, heads)


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
    """Embedding and head in ``dtype``, norms and biases in F32, which llama.cpp demands; factors of
    the rotary frequencies where they are not all the same."""
    entries = rotary_factors(source.config.model)
    for name in source.linear_names():
        if source.meta_linear(name).bias is not None:
            bias = f"{name}.bias"
            shape = source.shape(bias)
            read = lambda n=bias: source.tensor(n)  # noqa: E731
            entries.append(dense_entry(f"{gguf_name(name)}.bias", shape, "f32", read))
    for name in source.tensor_names():
        module = name.removesuffix(".weight")
        of = "f32" if module.endswith("norm") else dtype
        shape = source.shape(name)
        entries.append(
            dense_entry(f"{gguf_name(module)}.weight", shape, of, lambda n=name: source.tensor(n))  # type: ignore[misc]
        )
    return entries


def rotary_factors(model: ModelConfig) -> list[Entry]:
    """Llama 3's scaling: by how much each frequency is divided, ``[width/2]``."""
    if model.rope_scaling is None or model.rope_scaling.rope_type != "llama3":
        return []
    plain = rotary_frequencies(replace(model, rope_scaling=None))
    factors = plain / rotary_frequencies(model)
    return [dense_entry("rope_freqs.weight", (len(factors),), "f32", lambda: factors)]


def write_file(
    source: Source,
    folder: Path,
    entries: Sequence[Entry],
    file_type: int,
    named: str | None = None,
    more: Callable[[GGUFWriter], None] | None = None,
) -> None:
    """Write the model's keys, its tokenizer and ``entries``, one tensor in memory at a time.

    ``named`` is what the file says it is, where that is not its `architecture`; ``more`` adds keys.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(None, named or architecture(source.config.model))
    _add_model(writer, source, file_type)
    rows = source.config.model.vocab_size
    assert rows is not None  # of a trained run
    add_tokenizer(writer, vocabulary(source.tokenizer, rows), source.tokenizer.bos_id)
    if more is not None:
        more(writer)
    _write_tensors(writer, folder / FILE, entries)


def _write_tensors(writer: GGUFWriter, file: Path, entries: Sequence[Entry]) -> None:
    from gguf import GGMLQuantizationType

    for entry in entries:
        # Types that the package has no name for are numbers all the same in the file.
        kind: GGMLQuantizationType = entry.kind  # type: ignore[assignment]
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.size, raw_dtype=kind
        )
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(entry.data())
    finally:
        writer.close()


def _add_model(writer: GGUFWriter, source: Source, file_type: int) -> None:
    """What the model is; keys of its architecture, whatever the file says it is."""
    config, model = source.config, source.config.model
    kind, width = architecture(model), head_dim(model)
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
        "attention.head_count_kv": num_kv_heads(model),
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "vocab_size": model.vocab_size,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"{kind}.{key}", number)
    writer.add_float32(f"{kind}.attention.layer_norm_rms_epsilon", model.norm_eps)
    writer.add_float32(f"{kind}.rope.freq_base", model.rope_theta)
    if model.rope_scaling is not None and model.rope_scaling.rope_type == "linear":
        writer.add_string(f"{kind}.rope.scaling.type", "linear")
        writer.add_float32(f"{kind}.rope.scaling.factor", model.rope_scaling.factor)


def add_tokenizer(writer: GGUFWriter, words: Vocabulary, bos: int) -> None:
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


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: the number of its type, its shape (rows first), where."""

    kind: int
    shape: tuple[int, ...]
    start: int


@lru_cache(maxsize=1)
def _opened(file: Path, changed: int) -> tuple[GGUFReader, dict[str, Stored]]:
    """A file's keys and tensors; ``changed`` tells it from one that was there before."""
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderField

    tensors: dict[str, Stored] = {}

    class Reader(GGUFReader):
        """gguf 0.19's own way ends at a type that it has no name for, such as Q2_0."""

        def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
            for field in fields:
                _, name, _, dims, kind, offset = field.parts
                shape = tuple(int(size) for size in reversed(dims))
                start = start_offs + int(offset[0])
                tensors[bytes(name).decode()] = Stored(int(kind[0]), shape, start)

    return Reader(file), tensors


def read_tensor(folder: Path, name: str) -> Tensor:
    """The matrix of a layer, fp32 ``[N, K]`` with the rows as we have them: what other software
    makes of the file's bytes, times its ``.scale`` where there is one."""
    file = folder / FILE
    reader, tensors = _opened(file, file.stat().st_mtime_ns)
    base = gguf_name(name)
    values = _values(file, tensors[f"{base}.weight"])
    if (scale := tensors.get(f"{base}.scale")) is not None:
        values = values * _values(file, scale)
    kind = next(key.split(".")[0] for key in reader.fields if key.endswith(".block_count"))
    if not is_reordered(kind, name):
        return values
    key = "head_count_kv" if name.endswith("k_proj") else "head_count"
    return halves(values, int(reader.fields[f"{kind}.attention.{key}"].contents()))


def _values(file: Path, stored: Stored) -> Tensor:
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    sizes |= {block.number: (block.width, block.size) for block in TYPES}
    width, size = sizes[stored.kind]
    count = int(np.prod(stored.shape)) // width * size
    data = np.fromfile(file, np.uint8, count, offset=stored.start)
    return torch.from_numpy(dequantize(stored.kind, data, stored.shape))


def write_dense(folder: Path, output: Path) -> None:
    """The file of ``folder`` again, its blocks as the F32 values that they stand for, with which
    llama.cpp quantizes no activations."""
    from gguf import GGUFWriter

    file = folder / FILE
    reader, tensors = _opened(file, file.stat().st_mtime_ns)
    named = "general.architecture"
    writer = GGUFWriter(None, reader.fields[named].contents())
    for key, field in reader.fields.items():
        if key != named and not key.startswith("GGUF."):
            kind, *inner = field.types
            sub = inner[-1] if inner else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    entries = [
        dense_entry(name, found.shape, "f32", lambda found=found: _values(file, found))  # type: ignore[misc]
        for name, found in tensors.items()
    ]
    _write_tensors(writer, output / FILE, entries)
