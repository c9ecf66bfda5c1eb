"""GGUF with the trained codes in llama.cpp's block formats: small files, whose error is the fp16
scale of a row and, much larger, what llama.cpp's own arithmetic adds."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.gguf import (
    LOADING,
    activations_refusal,
    context_limits,
    dense_linear,
    encode,
    file_refusal,
    precision_limits,
    run,
)
from questtrain.inference.export.gguf_blocks import BlockType, narrowest
from questtrain.inference.export.gguf_file import (
    Entry,
    around_the_blocks,
    dense_entry,
    gguf_name,
    in_file_order,
    read_tensor,
    write_dense,
    write_file,
)
from questtrain.inference.export.integers import (
    coded_layers,
    integers,
    possible_integers,
    units,
)
from questtrain.inference.export.source import Source, WeightCodes
from questtrain.quant.quantizer import Quantizer
from questtrain.quant.rotation import NoRotation

BOUND = Bound(largest=None, median=0.05, argmax=0.9)
"""llama.cpp quantizes activations to 8 bits in these types: single logits may move far."""
F32 = "llama.cpp-f32"
BOUND_F32 = Bound(largest=0.02, median=2e-3, argmax=0.98)
"""What is left of a row's scale in fp16: a row in the wrong place would not pass."""

SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
"""fp16's normal numbers."""


class GgufPackedFormat(ExportFormat):
    """Codes, a scale a row."""

    name = "gguf-packed"
    runtimes = EXPORT_FORMATS["gguf-packed"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        return (
            activations_refusal(source)
            or bits_refusal(source)
            or rotation_refusal(source)
            or block_refusal(source)
            or file_refusal(source)
        )

    def write(self, source: Source, folder: Path, options: Options) -> None:
        entries = [*around_the_blocks(source, options.dtype), *linears(source, options.dtype)]
        write_file(source, folder, entries, file_type(source))
        write_card(source, folder, LOADING, "gguf")

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return read_tensor(folder, name), True

    def bound(self, source: Source, options: Options, runtime: str) -> Bound:
        return BOUND_F32 if runtime == F32 else BOUND

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        if runtime == F32:
            how = "llama.cpp ran the values that the blocks stand for, in F32, not the blocks."
            return [how, *scale_limits(source)]
        return [
            "llama.cpp's CPU backend quantizes what these weights multiply to 8 bits, 32 or 256"
            " values at a time: logits differ by that, not by the weights, and are judged by the"
            f" median and the most likely token. `questtrain verify` with runtime={F32} shows the"
            " weights' part; format=gguf is exact.",
            *scale_limits(source),
            *context_limits(source),
            *precision_limits(options.dtype),
        ]

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        if runtime != F32:
            yield from run(folder, runtime, prompts, device)
            return
        with tempfile.TemporaryDirectory() as scratch:
            write_dense(folder, Path(scratch))
            yield from run(Path(scratch), "llama.cpp", prompts, device)

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        return encode(folder, "llama.cpp", texts)


def bits_refusal(source: Source) -> str | None:
    if source.bits.weight.quantized:
        return None
    return f"bits={source.config.bits} has no codes: format=gguf holds its weights."


def rotation_refusal(source: Source) -> str | None:
    """Rotated codes mean nothing to a program that does not rotate the activations."""
    for name, quantizer in coded_layers(source).items():
        if not isinstance(quantizer.rotation, NoRotation):
            return (
                f"the codes of {name} are of weights that a Hadamard transform has rotated, and"
                " llama.cpp rotates no activations: format=gguf holds the weights rotated back"
                " (dense), method=quest-noht trains codes that need none, and format=gguf-rotated"
                " writes them for programs that do."
            )
    return None


def block_refusal(source: Source) -> str | None:
    """Some type must have the integers and divide the width."""
    for name, quantizer in coded_layers(source).items():
        if block_type(source, name) is None:
            columns, values = scale_columns(source, name), sorted(possible_integers(quantizer))
            return (
                f"no block format of llama.cpp holds the {len(values)} values {values[0]} …"
                f" {values[-1]} of {name} in blocks of {columns} weights: format=gguf holds them"
                " dense, format=onnx and format=packed as codes."
            )
    return None


def block_type(source: Source, name: str) -> BlockType | None:
    """The blocks of a quantized layer."""
    layer = source.meta_linear(name)
    assert isinstance(layer.weight_quantizer, Quantizer)
    return narrowest(possible_integers(layer.weight_quantizer), scale_columns(source, name))


def scale_columns(source: Source, name: str) -> int:
    """How many weights of a row share a scale: blocks must divide them."""
    group = source.config.quant.group_size
    return source.meta_linear(name).in_features if group is None else group


def file_type(source: Source) -> int:
    """general.file_type: what most layers are."""
    found = Counter(block_type(source, name) for name in coded_layers(source))
    most = found.most_common(1)[0][0]
    assert most is not None  # refused
    return most.file_type


def linears(source: Source, dtype: str) -> Iterator[Entry]:
    """All layers: codes in blocks, and a scale a tensor where that is needed; what is not quantized
    in ``dtype``."""
    for name in source.linear_names():
        codes = source.codes(name)
        if codes is None:
            yield dense_linear(source, name, dtype)
            continue
        kind = block_type(source, name)
        assert kind is not None  # refused
        rows, columns = codes.codes.shape
        size = rows * columns // kind.width * kind.size
        yield Entry(
            f"{gguf_name(name)}.weight",
            (rows, columns),
            kind.number,
            size,
            lambda name=name, kind=kind: _blocks(source, name, kind),  # type: ignore[misc]
        )
        scale = tensor_scale(codes)
        if scale != 1:
            tensor = torch.tensor([scale])
            yield dense_entry(f"{gguf_name(name)}.scale", (1,), "f32", lambda t=tensor: t)  # type: ignore[misc]


def _blocks(source: Source, name: str, kind: BlockType) -> np.ndarray:
    codes = source.codes(name)
    assert codes is not None
    values, found = integers(codes)
    halves = (found / tensor_scale(codes)).half()
    # A row's units go where its row goes.
    ordered = (in_file_order(source, name, rows) for rows in (values, halves))
    return kind.blocks(*(rows.contiguous().numpy() for rows in ordered))


def tensor_scale(codes: WeightCodes) -> float:
    """What llama.cpp multiplies all of a layer by, in fp32 (``.scale``): the one unit that was
    learned, which so stays exact, or a power of two that brings all units into fp16's range."""
    found = units(codes)
    if bool((found == found[0, 0]).all()):
        return float(found[0, 0])
    low, high = float(found.min()), float(found.max())
    if low >= SMALLEST_HALF and high <= LARGEST_HALF:
        return 1.0
    return 2.0 ** (math.frexp(high)[1] - 15)


def scale_limits(source: Source) -> list[str]:
    """How exact the scales are."""
    worst, scaled = 0.0, 0
    for name in coded_layers(source):
        codes = source.codes(name)
        assert codes is not None
        scale, found = tensor_scale(codes), units(codes)
        rounded = (found / scale).half().float() * scale
        worst = max(worst, float(((rounded - found) / found).abs().max()))
        scaled += scale != 1
    words = [
        f"A row's scale is an fp16 number: values differ by {worst:.1e} of themselves at most."
    ]
    if scaled:
        words.append(
            f"{scaled} layers have a scale a tensor (blk.N.….scale), which llama.cpp multiplies by;"
            " a program that knows no such tensors computes something else."
        )
    return words if worst else words[1:]
