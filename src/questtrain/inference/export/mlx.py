"""``format=mlx``: a folder that mlx-lm loads as it is.

MLX's affine codes are whole numbers q of 1, 2, 3, 4, 5, 6 or 8 bits, the first lowest, without a
gap; a group of columns has a scale and a bias: ``value = scale · q + bias``. A grid of n values on
[-s, s] is q = 0 … n-1 with the scale 2s/(n-1) and the bias -s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from questtrain.config import query_size
from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import ExportFormat, Options
from questtrain.inference.export.hf_folder import HuggingFaceFolder, write_settings
from questtrain.inference.export.integers import coded_layers, integers, reach
from questtrain.inference.export.source import Source, WeightCodes
from questtrain.inference.export.tokenizer_files import tokenizer_limits
from questtrain.inference.export.weight_only import (
    why_not,
    write_weights,
)
from questtrain.quant.dense_codes import pack_codes, unpack_codes
from questtrain.quant.grid import UniformGrid
from questtrain.store.tensor_files import Planned

METADATA = {"format": "mlx", "producer": "questtrain"}
BITS = (1, 2, 3, 4, 5, 6, 8)
GROUPS = (128, 64, 32)
"""Columns that share a scale and a bias: what MLX has."""

LOADING = """mlx-lm loads it, on Apple's GPUs, on NVIDIA's and on CPUs:

```python
from mlx_lm import generate, load

model, tokenizer = load("FOLDER")
print(generate(model, tokenizer, prompt="Once upon a time"))
```"""


class Container(NamedTuple):
    """How a run's `integers` lie in MLX's codes: from ``-middle`` to ``middle``, ``apart`` one from
    the next, with a scale for ``group`` columns."""

    middle: int
    apart: int
    group: int

    @property
    def levels(self) -> int:
        return 2 * self.middle // self.apart + 1

    @property
    def bits(self) -> int:
        """Of a code. StopIteration where MLX has none that holds so many levels."""
        return next(bits for bits in BITS if self.levels <= 2**bits)


DENSE = Container(0, 1, GROUPS[0])
"""Of a run without quantized weights: nothing is packed."""


class MlxFormat(ExportFormat):
    """Weight-only runs without rotation, and dense ones."""

    name = "mlx"
    runtimes = EXPORT_FORMATS["mlx"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        if (reason := why_not(source, "mlx-lm")) is not None:
            return reason
        model = source.config.model
        if model.qkv_bias and query_size(model) != model.hidden_size:
            return (
                f"model.head_dim={model.head_dim}: mlx-lm's model with biases of Q, K and V (qwen2)"
                " takes heads that divide the hidden size alone. format=packed and format=hf hold"
                " it."
            )
        coded, asked = coded_layers(source), source.config.quant.group_size
        for name in coded:
            columns = source.shape(f"{name}.weight")[1]
            if columns % GROUPS[-1]:
                return (
                    f"the width {columns} of {name} is no multiple of {GROUPS[-1]}, the least group"
                    " of MLX: format=packed and format=hf hold it."
                )
        if coded and asked is not None and asked < GROUPS[-1]:
            return (
                f"quant.group_size={asked}, and the least group of MLX is {GROUPS[-1]} columns:"
                " format=packed and format=onnx hold it."
            )
        kind = container(source)
        if kind.levels > 256:
            return (
                f"with the zeros of its sparsity w{source.bits.weight} has {kind.levels} values a"
                " step apart, too many for 8 bits: format=packed and format=hf hold it."
            )
        if options.dtype == "bf16" and kind.levels > 128:
            return "a bias in bf16 is too coarse for 8 bits: choose dtype=f16 or dtype=f32."
        return None

    def write(self, source: Source, folder: Path, options: Options) -> None:
        kind = container(source)
        layout = partial(planned_weight, source, kind=kind, dtype=options.torch_dtype)
        packed = partial(packed_weight, kind=kind, dtype=options.torch_dtype)
        write_weights(source, folder, options, layout, packed, METADATA)
        settings = {"quantization": {"group_size": kind.group, "bits": kind.bits}}
        write_settings(source, folder, options, {} if kind is DENSE else settings)
        write_card(source, folder, LOADING)

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return values(folder, name), True

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        limits, kind = tokenizer_limits(source.tokenizer), container(source)
        if source.config.model.qkv_bias:
            limits.append(
                "mlx-lm reads tokenizers by AutoTokenizer, which splits words as Qwen's do for"
                " every model with biases of Q, K and V."
            )
        if kind is not DENSE:
            bits = kind.bits + 2 * options.torch_dtype.itemsize * 8 / kind.group
            limits.append(
                f"A weight takes {bits:g} bits: MLX repeats scale and bias for every {kind.group}"
                " columns."
            )
        if options.dtype != "f32":
            limits.append(f"Numbers that are no codes, scales too, are rounded to {options.dtype}.")
        return limits

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        if device == "cpu":
            mx.set_default_device(mx.cpu)
        model, _ = load_model(folder)
        for prompt in prompts:
            logits = model(mx.array(prompt.tolist())[None])[0].astype(mx.float32)
            yield torch.from_numpy(np.array(logits))

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        """What mlx-lm's tokenizer makes of every text, BOS included."""
        from mlx_lm.utils import load_tokenizer

        tokenizer = load_tokenizer(folder)  # type: ignore[no-untyped-call]
        for text in texts:
            ids: list[int] = tokenizer.encode(text)
            yield ids


def container(source: Source) -> Container:
    """Of a run's weights, those that are quantized being on one grid."""
    coded = coded_layers(source)
    if not coded:
        return DENSE
    widths = [source.shape(f"{name}.weight")[1] for name in coded]
    widths += [source.config.quant.group_size or GROUPS[0]]
    quantizer = next(iter(coded.values()))
    grid = quantizer.grid
    # FP4's values are not equidistant, nor are the odd integers and sparsity's 0.
    odd = isinstance(grid, UniformGrid) and grid.levels % 2 == 0 and quantizer.sparsity is None
    return Container(reach(grid), 2 if odd else 1, math.gcd(GROUPS[0], *widths))


def planned_weight(
    source: Source, name: str, kind: Container, dtype: torch.dtype
) -> dict[str, Planned]:
    """The tensors of a layer's weight."""
    rows, columns = source.shape(f"{name}.weight")
    return planned(rows, columns, kind.bits, kind.group, dtype)


def planned(
    rows: int, columns: int, bits: int, group: int, dtype: torch.dtype
) -> dict[str, Planned]:
    """The tensors of a weight ``[rows, columns]``."""
    scales = Planned(dtype, (rows, columns // group))
    words = Planned(torch.uint32, (rows, columns * bits // 32))
    return {"weight": words, "scales": scales, "biases": scales}


def packed_weight(codes: WeightCodes, kind: Container, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same, with their numbers."""
    whole, units = integers(codes)
    rows, columns = whole.shape
    words = pack_codes(((whole + kind.middle) // kind.apart).to(torch.uint8), 2**kind.bits)
    units = units.repeat_interleave(columns // kind.group // units.shape[1], dim=1)
    return {
        "weight": words.view(torch.uint32).view(rows, columns * kind.bits // 32),
        "scales": (kind.apart * units).to(dtype),
        "biases": (-kind.middle * units).to(dtype),
    }


def values(folder: Path, name: str) -> Tensor:
    """What the folder holds of one of our layers, fp32 ``[N, K]``."""
    written = HuggingFaceFolder(folder)
    rows, columns = written.shape(name)
    if not written.has(name, "scales"):
        return written.plain_weight(name)
    settings = written.config["quantization"]
    bits, group = settings["bits"], settings["group_size"]
    read = written.parts(name, planned(rows, columns, bits, group, written.dtype))
    words = read["weight"].flatten().view(torch.uint8)
    indices = unpack_codes(words, 2**bits, rows * columns).view(rows, -1, group)
    scales, biases = (read[part].float().unsqueeze(-1) for part in ("scales", "biases"))
    weights: Tensor = scales * indices + biases
    return weights.view(rows, columns)
