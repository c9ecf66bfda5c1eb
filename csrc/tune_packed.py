"""Which tile of packed weights is fastest at which shape of a product, its quantizer in front.

    python csrc/tune_packed.py [--models 800M 7B] [--rows 16 64] [--table FILE] [--output FILE]

Needs a Hopper GPU and a built library. The result is the table that the library picks from
(packed_tiles_tuned.inc), which `make kernels` then builds in. Only tiles whose blocks fill the GPU,
and do not crowd it, are tried.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tune import Tuning, add_options, runs

from questtrain.bench.layer.random_tensors import normal, quantized, rotating
from questtrain.bench.timing import Sampler, Timing
from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.kernels.ops.quantize_linear import hadamard_quantize_linear_tile

MODELS = ("30M", "100M", "800M", "7B")
ROWS = (16, 32, 64, 128, 256)
BITS = (1, 2, 4)
HERE = Path(__file__).parent
TABLE = HERE / "packed_tiles_tuned.inc"
TILES = [
    tuple(map(int, re.findall(r"\d+", line)))
    for line in (HERE / "packed_tiles.inc").read_text().splitlines()
]
"""Rows, groups, quads, blocks, as packed_tiles.h names them."""
SPLITS = 8
FILLS, CROWDS = 0.6, 4.0
"""Blocks for each multiprocessor."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure every shape of the models' blocks and write the table as C++ initializers."""
    options = parse(words)
    tuning = Tuning("tune_packed.py", options, words)
    best: list[tuple[int, ...]] = []
    for bits in options.bits:
        for columns, width in tuning.shapes:
            for rows in options.rows:
                timings = tune_shape(bits, rows, columns, width, tuning.device, tuning.sample)
                if timings:
                    what = {"bits": bits, "tokens": rows, "n": columns, "k": width}
                    best.append((bits, rows, columns, width, tuning.best(what, timings)))
            print(f"{bits} bits, {columns} × {width}", file=sys.stderr)
    tuning.finish(best)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of activations")
    parser.add_argument("--bits", nargs="+", type=int, default=BITS, help="of the weights")
    add_options(parser, MODELS, 0.5, TABLE, "tune-packed.json")
    return parser.parse_args(words)


def candidates(rows: int, columns: int, multiprocessors: int) -> list[int]:
    """The numbers of tiles that hold all rows, or are the largest, and whose blocks are neither
    too few nor too many."""
    sizes = sorted({tile[0] for tile in TILES})
    wanted = next((size for size in sizes if size >= rows), sizes[-1])
    found = []
    for number, (size, groups, *_) in enumerate(TILES):
        tiles = math.ceil(columns / (64 * groups)) * math.ceil(rows / size)
        for split in range(1, SPLITS + 1):
            filled = tiles * split / multiprocessors
            if size == wanted and (FILLS <= filled <= CROWDS or (split == SPLITS and filled < 1)):
                found.append(number + len(TILES) * (split - 1))
    return found


def tune_shape(
    bits: int, rows: int, columns: int, width: int, device: torch.device, sample: Sampler
) -> dict[str, Timing]:
    """Microseconds of the candidates that take the shape, by tile number."""
    levels = 2**bits
    x, alpha = normal(rows, width, device), GAUSSIAN_ALPHA[levels]
    weight, scales, _ = quantized(normal(columns, width, device), levels, packed=True)
    copies = rotating((weight, scales), device)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    cases = {
        str(tile): [
            partial(hadamard_quantize_linear_tile, x, levels, alpha, *w, levels, tile)
            for w in copies
        ]
        for tile in candidates(rows, columns, count)
    }
    return sample({tile: calls for tile, calls in cases.items() if runs(calls[0])})


if __name__ == "__main__":
    main()
