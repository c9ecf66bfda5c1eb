"""The quantizers alone, beside a plain copy of as many bytes: the most that memory allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from questtrain.bench.layer.random_tensors import (
    DTYPE,
    Format,
    normal,
    quantize_arguments,
    rotating,
    total_bytes,
)
from questtrain.bench.results import Row, timing_row
from questtrain.bench.timing import Sampler, copies_beyond_cache
from questtrain.config import ModelConfig, intermediate_size
from questtrain.kernels import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
)
from questtrain.kernels.formats import MAX_PACKED_LEVELS, container_bits

EPS = 1e-5
Operation = tuple[Callable[..., object], tuple[Tensor, ...], int]
"""A call, its tensors, and the bytes that it reads and writes."""


def measure_quantizers(
    model: ModelConfig,
    tokens: int,
    formats: Format,
    device: torch.device,
    sample: Sampler,
) -> list[Row]:
    """A row for each form at each width: microseconds, ``gbps`` (10⁹ bytes read and written a
    second), ``copy_fraction`` (of the speed of a copy of the same bytes)."""
    rows = []
    for width, fused in (
        (model.hidden_size, ("rmsnorm", "add_rmsnorm")),
        (intermediate_size(model), ("swiglu",)),
    ):
        operations = quantizer_operations(tokens, width, fused, formats.activation_levels, device)
        cases: dict[str, list[Callable[[], object]]] = {
            case: [partial(call, *copies) for copies in rotating(tensors, device)]
            for case, (call, tensors, _) in operations.items()
        }
        for size in {size for _, _, size in operations.values()}:
            cases[f"copy {size}"] = copy_calls(size, device)
        timings = sample(cases)
        what = {"part": "quantizers", "tokens": tokens, "k": width}
        for case, (_, _, size) in operations.items():
            copy, timing = timings[f"copy {size}"], timings[case]
            rows.append(
                timing_row(
                    what,
                    case,
                    timing,
                    bytes=size,
                    gbps=size / timing.median / 1e3,
                    copy_median=copy.median,
                    copy_fraction=copy.median / timing.median,
                )
            )
    return rows


def quantizer_operations(
    tokens: int, width: int, fused: tuple[str, ...], levels: int, device: torch.device
) -> dict[str, Operation]:
    """The forms for rows of ``width``: with and without the Hadamard transform, packed, and those
    fused with the operation before."""
    rotated = quantize_arguments(width, levels)
    x, weight = normal(tokens, width, device), normal(1, width, device).flatten()

    def written(packed: bool = False) -> int:
        codes = tokens * width
        return (codes * container_bits(levels) // 8 if packed else codes) + 8 * tokens

    def hadamard(packed: bool = False, rotate: bool = True) -> Operation:
        arguments = quantize_arguments(width, levels, packed, rotate)
        call = partial(_call, hadamard_quantize, arguments)
        return call, (x,), total_bytes(x) + written(packed)

    operations = {"hadamard": hadamard(), "no-hadamard": hadamard(rotate=False)}
    if levels <= MAX_PACKED_LEVELS:
        operations["hadamard packed"] = hadamard(packed=True)
    if "rmsnorm" in fused:
        call = partial(_call, rmsnorm_quantize, (EPS, *rotated))
        operations["rmsnorm"] = call, (x, weight), total_bytes(x) + written()
    if "add_rmsnorm" in fused:
        call = partial(_call, add_rmsnorm_quantize, (EPS, *rotated))
        tensors = (x, normal(tokens, width, device), weight)
        operations["add_rmsnorm"] = call, tensors, 3 * total_bytes(x) + written()
    if "swiglu" in fused:
        call = partial(_call, swiglu_quantize, rotated)
        operations["swiglu"] = (
            call,
            (normal(tokens, 2 * width, device),),
            (2 * total_bytes(x) + written()),
        )
    return operations


def copy_calls(size: int, device: torch.device) -> list[Callable[[], object]]:
    """Copies that read and write ``size`` bytes together, between rotating buffers."""
    half = max(16, size // 2)
    pairs = copies_beyond_cache(size, device)
    source = normal(1, half // DTYPE.itemsize, device).flatten()
    return [partial(torch.empty_like(source).copy_, source.clone()) for _ in range(pairs)]


def _call(op: Callable[..., object], arguments: tuple[object, ...], *tensors: Tensor) -> object:
    return op(*tensors, *arguments)
