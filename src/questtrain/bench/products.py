"""One linear layer's product alone: BF16 and FP8 by cuBLAS, INT8 and packed weights by ours.

The activations are there already quantized: what quantizing costs is in `questtrain.bench.block`.
FP8 has one scale a tensor (the fastest that cuBLAS offers) and full accumulation, without which
integers would not be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from questtrain.bench.linears import PACKED_TOKENS, int8, packed
from questtrain.bench.operands import DTYPE, Format, normal, quantized, rotating, total_bytes
from questtrain.bench.results import Row, timing_row
from questtrain.bench.shapes import Product
from questtrain.bench.timing import measure

Cases = dict[str, list[Callable[[], object]]]

PACKED_LEVELS = {"packed-4": 16, "packed-2": 4, "packed-1": 2}
FP8_CAPABILITY = (8, 9)


def measure_product(
    product: Product,
    tokens: int,
    formats: Format,
    device: torch.device,
    rounds: int,
    milliseconds: float,
) -> list[Row]:
    """A row for each case: microseconds, ``tops`` (10¹² operations a second), ``gbps`` (10⁹ bytes
    of operands and result a second) and ``speedup`` over BF16."""
    cases, sizes = product_cases(product, tokens, formats, device)
    timings = measure(cases, rounds, milliseconds, device)
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
    product: Product, tokens: int, formats: Format, device: torch.device
) -> tuple[Cases, dict[str, int]]:
    """The cases, and the bytes that one call of each has to move."""
    x = normal(tokens, product.in_features, device)
    weight = normal(product.out_features, product.in_features, device, std=0.02)
    operands: dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]] = {
        "bf16": (_bf16, (x, weight))
    }
    if has_fp8(device):
        one = torch.ones((), device=device)
        fp8 = torch.float8_e4m3fn
        operands["fp8"] = (_fp8, (x.to(fp8), weight.to(fp8), one))
    codes, scales, sums = quantized(x, formats.activation_levels)
    values, value_scales, _ = quantized(weight, formats.weight_levels)
    operands["int8"] = (int8, (codes, scales, sums, values, value_scales))
    if tokens <= PACKED_TOKENS:
        for case, levels in PACKED_LEVELS.items():
            held, held_scales, _ = quantized(weight, levels, packed=True)
            operands[case] = (packed(levels, tokens), (codes, scales, sums, held, held_scales))
    output_bytes = tokens * product.out_features * DTYPE.itemsize
    cases: Cases = {
        case: [partial(call, *tensors) for tensors in rotating(operands_of_case, device)]
        for case, (call, operands_of_case) in operands.items()
    }
    sizes = {case: total_bytes(*tensors) + output_bytes for case, (_, tensors) in operands.items()}
    return cases, sizes


def has_fp8(device: torch.device) -> bool:
    """Whether cuBLAS multiplies E4M3 there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _bf16(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _fp8(x: Tensor, weight: Tensor, one: Tensor) -> Tensor:
    return torch._scaled_mm(x, weight.t(), one, one, out_dtype=DTYPE, use_fast_accum=False)
