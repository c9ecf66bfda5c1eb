"""Which tile configuration of the INT8 kernel is fastest at which shape.

The result is the table that the library picks from (csrc/gemm/tiles_sm90.inc): a row a measured
shape, for others the nearest serves. A shape is measured twice: every configuration in a plain
order, then the best ones with each swizzle and each order of output tiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from questtrain.bench.operands import DTYPE, normal, quantized, rotating
from questtrain.bench.results import Results, Row, timing_row
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import Timing, measure
from questtrain.config import ModelConfig
from questtrain.kernels.ops.linear import int8_linear_tile
from questtrain.store.files import atomic_write, output_for

log = logging.getLogger(__name__)

CONFIGURATIONS, SWIZZLES, ORDERS = 12, 4, 2
"""As csrc/gemm/tiles_sm90.h numbers them: configuration + 12·log2(swizzle) + 48·order."""
FINALISTS = 3
LEVELS = 16


def bench_tune(
    results: Results,
    models: Sequence[ModelConfig],
    tokens: Sequence[int],
    device: torch.device,
    rounds: int,
    milliseconds: float,
    table: Path,
) -> None:
    """Measure every shape of the models' blocks and write ``table`` as C++ initializers."""
    best: list[tuple[int, int, int, int]] = []
    shapes = {(p.out_features, p.in_features): None for m in models for p in block_products(m)}
    for columns, width in shapes:
        for count in tokens:
            timings = _tune_shape(count, columns, width, device, rounds, milliseconds)
            what = {"tokens": count, "n": columns, "k": width}
            rows: list[Row] = [
                timing_row(what, name, timing, tile=int(name)) for name, timing in timings.items()
            ]
            results.add(rows)
            tile = min(timings, key=lambda name: timings[name].median)
            best.append((count, columns, width, int(tile)))
            torch.cuda.empty_cache()
        log.info("%d × %d", columns, width)
    with output_for(table), atomic_write(table) as file:
        file.write(table_text(best).encode())
    results.finish()


def table_text(best: Iterable[tuple[int, int, int, int]]) -> str:
    """``{rows, columns, width, tile},`` a line."""
    return "".join("    {" + ", ".join(map(str, row)) + "},\n" for row in best)


def _tune_shape(
    tokens: int, columns: int, width: int, device: torch.device, rounds: int, milliseconds: float
) -> dict[str, Timing]:
    """Microseconds of the finalists, by tile number."""
    codes, scales, _ = quantized(normal(tokens, width, device), LEVELS)
    weight, weight_scales, _ = quantized(normal(columns, width, device), LEVELS)
    copies = rotating((weight, weight_scales), device)
    product = partial(_product, codes, scales)

    def timings(tiles: Iterable[int]) -> dict[str, Timing]:
        cases = {
            str(tile): [partial(product, *copy, tile=tile) for copy in copies]
            for tile in tiles
            if _runs(partial(product, *copies[0], tile=tile))
        }
        return measure(cases, rounds, milliseconds, device)

    first = timings(range(CONFIGURATIONS))
    finalists = sorted(first, key=lambda name: first[name].median)[:FINALISTS]
    return timings(
        int(name) + CONFIGURATIONS * (swizzle + SWIZZLES * order)
        for name in finalists
        for swizzle in range(SWIZZLES)
        for order in range(ORDERS)
    )


def _product(
    codes: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, tile: int
) -> Tensor:
    return int8_linear_tile(codes, scales, weight, weight_scales, DTYPE, tile)


def _runs(call: Callable[[], object]) -> bool:
    """Whether a tile takes the shape."""
    try:
        call()
    except RuntimeError:
        return False
    return True
