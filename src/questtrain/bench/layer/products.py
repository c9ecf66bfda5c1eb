"""One linear layer: BF16 and FP8 by cuBLAS, INT8 and packed weights by ours.

The products alone (``bf16``, ``fp8``, ``int8``, ``packed-4``, …) take quantized activations; the
layer (``quest``, ``no-hadamard``) takes bf16 ones, and quantizing them is part of its time.
FP8 has one scale a tensor (the fastest that cuBLAS offers) and full accumulation, without which
integers would not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from questtrain.bench.layer.random_tensors import (
    DTYPE,
    Format,
    matrix_of,
    normal,
    quantized,
    rotating,
    row_format,
    total_bytes,
)
from questtrain.bench.results import Row, timing_row
from questtrain.bench.shapes import ProductShape
from questtrain.bench.timing import Sampler
from questtrain.kernels import RowFormat, hadamard_linear
from questtrain.kernels.dispatch import MAX_PACKED_ROWS, most_packed_rows
from questtrain.kernels.ops.linear import int8_linear, packed_linear

Cases = dict[str, list[Callable[[], object]]]
Operations = dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]]
"""Case → a call and its tensors."""

PACKED_LEVELS = {"packed-4": 16, "packed-2": 4, "packed-1": 2}
FP8 = torch.float8_e4m3fn
FP8_CAPABILITY = (8, 9)


def measure_product(
    product: ProductShape,
    tokens: int,
    formats: Format,
    device: torch.device,
    sample: Sampler,
) -> list[Row]:
    """A row for each case: microseconds, ``tops`` (10¹² operations a second), ``gbps`` (10⁹ bytes
    of operands and result a second) and ``speedup`` over BF16."""
    cases, sizes = product_cases(product, tokens, formats, device)
    timings = sample(cases)
    what = {
        "part": "products",
        "linear": product.name,
        "tokens": tokens,
        "n": product.out_features,
        "k": product.in_features,
    }
    return [
        timing_row(
            what,
            case,
            timing,
            tops=product.operations(tokens) / timing.median / 1e6,
            gbps=sizes[case] / timing.median / 1e3,
            speedup=timings["bf16"].median / timing.median,
        )
        for case, timing in timings.items()
    ]


def product_cases(
    product: ProductShape, tokens: int, formats: Format, device: torch.device
) -> tuple[Cases, dict[str, int]]:
    """The cases, and the bytes that one call of each has to move."""
    x = normal(tokens, product.in_features, device)
    weight = normal(product.out_features, product.in_features, device, std=0.02)
    operations = {
        **_float_operations(x, weight),
        **_integer_operations(x, weight, formats),
        **_layers(x, weight, formats),
    }
    output_bytes = tokens * product.out_features * DTYPE.itemsize
    cases: Cases = {
        case: [partial(call, *copies) for copies in rotating(tensors, device)]
        for case, (call, tensors) in operations.items()
    }
    sizes = {
        case: total_bytes(*tensors) + output_bytes for case, (_, tensors) in operations.items()
    }
    return cases, sizes


def _float_operations(x: Tensor, weight: Tensor) -> Operations:
    operations: Operations = {"bf16": (_bf16, (x, weight))}
    if has_fp8(x.device):
        one = torch.ones((), device=x.device)
        operations["fp8"] = (_fp8, (x.to(FP8), weight.to(FP8), one))
    return operations


def _integer_operations(x: Tensor, weight: Tensor, formats: Format) -> Operations:
    """Ours, of activations that are quantized already."""
    tokens = x.shape[0]
    activation = quantized(x, formats.activation_levels)
    values, scales, _ = quantized(weight, formats.weight_levels)
    operations: Operations = {"int8": (_int8, (*activation, values, scales))}
    if tokens <= MAX_PACKED_ROWS:
        for case, levels in PACKED_LEVELS.items():
            codes, scales, _ = quantized(weight, levels, packed=True)
            operations[case] = (partial(_packed, levels), (*activation, codes, scales))
    return operations


def _layers(x: Tensor, weight: Tensor, formats: Format) -> Operations:
    """Ours from bf16 to bf16: ``quest``, and the same without the Hadamard transform."""
    tokens, width = x.shape
    is_packed = tokens <= most_packed_rows(x.device) and formats.packable
    matrix = quantized(weight, formats.weight_levels, packed=is_packed)
    return {
        case: (partial(_layer, row_format(width, formats, rotate), formats), (x, *matrix))
        for case, rotate in (("quest", True), ("no-hadamard", False))
    }


def has_fp8(device: torch.device) -> bool:
    """Whether cuBLAS multiplies E4M3 there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _bf16(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _fp8(x: Tensor, weight: Tensor, one: Tensor) -> Tensor:
    return torch._scaled_mm(x, weight.t(), one, one, out_dtype=DTYPE, use_fast_accum=False)


def _int8(x: Tensor, x_scales: Tensor, _: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    return int8_linear(x, x_scales, weight, scales, DTYPE)


def _packed(
    levels: int, x: Tensor, x_scales: Tensor, x_sums: Tensor, weight: Tensor, scales: Tensor
) -> Tensor:
    return packed_linear(x, x_scales, x_sums, weight, scales, levels, DTYPE)


def _layer(
    form: RowFormat, formats: Format, x: Tensor, codes: Tensor, scales: Tensor, sums: Tensor
) -> Tensor:
    return hadamard_linear(x, form, matrix_of(codes, scales, sums, formats))
