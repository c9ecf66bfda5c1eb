"""Which tile configuration of the INT8 kernel is fastest at which shape of a product.

    python csrc/tune.py [--models 30M 800M] [--tokens 16 64 128] [--table FILE] [--output FILE]

Needs a Hopper GPU and a built library. The result is the table that the library picks from
(gemm/tiles_sm90.inc), which `make kernels` then builds in: a row a measured shape; for others the
nearest serves. A shape is measured twice: every configuration in a plain order, then the best ones
with each swizzle and each order of output tiles.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from questtrain.bench.environment import environment
from questtrain.bench.layer.random_tensors import DTYPE, normal, quantized, rotating
from questtrain.bench.results import Results, timing_row
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import Sampler, Timing, measure
from questtrain.cli.bench_models import models_named
from questtrain.errors import UserError
from questtrain.kernels import extension
from questtrain.kernels.ops.linear import int8_linear_tile
from questtrain.store.files import atomic_write, output_for

MODELS = ("30M", "100M", "800M", "1600M", "7B")
TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
GEMM = Path(__file__).parent / "gemm"
TABLE = GEMM / "tiles_sm90.inc"
CONFIGURATIONS = (GEMM / "configurations_sm90.inc").read_text().count("\nNUMBERED_TILE(")
SWIZZLES, ORDERS = 4, 2
"""As gemm/tiles_sm90.h numbers them: configuration + 12·log2(swizzle) + 48·order."""
FINALISTS = 3
LEVELS = 16


class Tuning:
    """A tuner's run: the ``shapes`` (columns, width) of the models' products, how a case is timed
    (``sample``), and where all that is kept."""

    def __init__(
        self, script: str, options: argparse.Namespace, words: Sequence[str] | None
    ) -> None:
        """Ends the process where there is no Hopper GPU, and for a model that is none."""
        self.device, self.table = torch.device("cuda"), options.table
        if not extension.serves(self.device):
            sys.exit("error: tiles are measured on a Hopper GPU, by the library of `make kernels`.")
        try:
            models = models_named(options.models)
        except UserError as error:
            sys.exit(f"error: {error}")
        products = (product for model in models for product in block_products(model))
        self.shapes = list(dict.fromkeys((p.out_features, p.in_features) for p in products))
        self.sample: Sampler = partial(
            measure, rounds=options.rounds, milliseconds=options.milliseconds, device=self.device
        )
        said = sys.argv[1:] if words is None else words
        command = shlex.join(["python", f"csrc/{script}", *said])
        files = {"table": options.table.name, "output": options.output.name}
        settings = {**vars(options), **files}
        facts = environment(self.device, command)
        self.results = Results("tune", facts, settings, options.output)

    def best(self, what: dict[str, int], timings: dict[str, Timing]) -> int:
        """The fastest tile of a shape, all of whose timings are kept."""
        rows = [timing_row(what, name, t, tile=int(name)) for name, t in timings.items()]
        self.results.add(rows)
        torch.cuda.empty_cache()
        return int(min(timings, key=lambda name: timings[name].median))

    def finish(self, best: Iterable[tuple[int, ...]]) -> None:
        """Write the table."""
        with output_for(self.table), atomic_write(self.table) as file:
            file.write(table_text(best).encode())
        self.results.finish()
        print(f"table: {self.table}; measurements: {self.results.path}")


def main(words: Sequence[str] | None = None) -> None:
    """Measure every shape of the models' blocks and write the table as C++ initializers."""
    options = parse(words)
    tuning = Tuning("tune.py", options, words)
    best: list[tuple[int, ...]] = []
    for columns, width in tuning.shapes:
        for count in options.tokens:
            timings = tune_shape(count, columns, width, tuning.device, tuning.sample)
            what = {"tokens": count, "n": columns, "k": width}
            best.append((count, columns, width, tuning.best(what, timings)))
        print(f"{columns} × {width}", file=sys.stderr)
    tuning.finish(best)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="rows of activations")
    add_options(parser, MODELS, 0.8, TABLE, "bench-tune.json")
    return parser.parse_args(words)


def add_options(
    parser: argparse.ArgumentParser,
    models: Sequence[str],
    milliseconds: float,
    table: Path,
    output: str,
) -> None:
    """What every `Tuning` is told, with its defaults."""
    add = parser.add_argument
    add("--models", nargs="+", default=models, help="whose blocks have the shapes")
    add("--rounds", type=int, default=3, help="samples a tile; all take turns")
    add("--milliseconds", type=float, default=milliseconds, help="a sample lasts")
    add("--table", type=Path, default=table, help="the table's file")
    add("--output", type=Path, default=Path(output), help="measurements")


def table_text(best: Iterable[tuple[int, ...]]) -> str:
    """``{numbers of the shape, tile},`` a line."""
    return "".join("    {" + ", ".join(map(str, row)) + "},\n" for row in best)


def tune_shape(
    tokens: int, columns: int, width: int, device: torch.device, sample: Sampler
) -> dict[str, Timing]:
    """Microseconds of the finalists, by tile number."""
    codes, scales, _ = quantized(normal(tokens, width, device), LEVELS)
    weight, weight_scales, _ = quantized(normal(columns, width, device), LEVELS)
    copies = rotating((weight, weight_scales), device)

    def timings(tiles: Iterable[int]) -> dict[str, Timing]:
        cases = {
            str(tile): [partial(int8_linear_tile, codes, scales, *w, DTYPE, tile) for w in copies]
            for tile in tiles
            if runs(partial(int8_linear_tile, codes, scales, *copies[0], DTYPE, tile))
        }
        return sample(cases)

    first = timings(range(CONFIGURATIONS))
    finalists = sorted(first, key=lambda name: first[name].median)[:FINALISTS]
    return timings(
        int(name) + CONFIGURATIONS * (swizzle + SWIZZLES * order)
        for name in finalists
        for swizzle in range(SWIZZLES)
        for order in range(ORDERS)
    )


def runs(call: Callable[[], object]) -> bool:
    """Whether a tile takes the shape."""
    try:
        call()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
