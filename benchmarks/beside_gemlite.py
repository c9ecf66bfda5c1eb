"""The four linears of a block beside gemlite's and cuBLAS' BF16: same shapes, same run, in turns.

    python benchmarks/beside_gemlite.py OUTPUT.json [--models 7B 800M] [--tokens 1 8 …]
        [--bits w4a4 …] [--configs FILE] [--minutes N]

gemlite (``pip install gemlite==0.6.0``; questtrain does not depend on it) runs as in a served
model: ``A16W4`` multiplies bf16 rows by 4-bit weights in groups of 128 with a scale and a zero
point each, ``A8W8`` quantizes each row to INT8 on the way to INT8 weights with a scale a row. Ours
includes its quantizer as well. Q, K and V are one linear, gate and up are one, for all of them.

gemlite's autotuner chooses among its own configurations ("fast", its default mode) for each shape
and row count on this device, `TUNING` milliseconds a configuration. What it would try is compiled
first, by as many processes as there are cores. FILE keeps what it chose (default: OUTPUT with
``.configs.json``), in gemlite's format: a further run with it tunes nothing again. After N minutes
no further row count is begun.

Every case's result is compared with the dense product of the weights and rows before it is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questtrain.bench.environment import environment
from questtrain.bench.layer.bf16_block import Inputs
from questtrain.bench.layer.block import weight_kinds
from questtrain.bench.layer.random_tensors import (
    DTYPE,
    Format,
    Tensors,
    format_of,
    matrix_of,
    normal,
    quantized,
    rotating,
    row_format,
    total_bytes,
)
from questtrain.bench.results import Results, Row, timing_row
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import Calls, Timing, measure
from questtrain.cli.bench_models import models_named
from questtrain.config import ModelConfig, parse_bits
from questtrain.errors import UserError
from questtrain.kernels import hadamard_linear

GROUP = 128
TUNING = {"warmup": 5, "rep": 25}
"""Milliseconds that gemlite's autotuner runs a configuration, before and while it is timed."""
COMPILING = 0.6
"""Of all the time, what compiling ahead may take."""
KERNEL_TOKENS = (0, 8, 64, 1 << 31)
"""gemlite takes another kernel from so many rows on: compiled together is what shares binaries."""
DISTORTION = {2: 0.3634, 3: 0.1902, 4: 0.1188, 8: 0.0374, 16: 0.0115}
"""Levels → mean squared error of the best uniform grid on N(0, 1)."""
GEMLITE_ERRORS = {"A16W4": 0.12, "A8W8": 0.025}
"""Relative errors that are right. 4 bits over the range of 128 normal numbers, 5.2 σ on average:
5.2/15/√12 = 0.100. 8 bits up to the largest of 2,048 to 11,008, 3.5 to 4.1 σ: 0.009 on either side,
together 0.013, and bf16 sums where K is split."""


@dataclass(frozen=True)
class Case:
    """Four linears: the tensors of each, and ``multiply(index, rows, tensors)`` → ``[M, N]``."""

    multiply: Callable[[int, Tensor, Tensors], Tensor]
    operands: Sequence[Tensors]
    largest_error: float

    def calls(self, inputs: Inputs) -> Calls:
        """The four, one after the other, on copies of the operands beyond the device's cache."""
        flat = tuple(tensor for tensors in self.operands for tensor in tensors)
        return [partial(self._run, inputs, copy) for copy in rotating(flat, inputs.x.device)]

    def _run(self, inputs: Inputs, flat: Tensors) -> None:
        size = len(self.operands[0])
        for index, rows in enumerate(inputs.of_linears):
            self.multiply(index, rows, flat[index * size : (index + 1) * size])

    def check(self, name: str, inputs: Inputs, exact: Sequence[Tensor]) -> float:
        """The largest relative error of the four results; ends where one is too large."""
        errors = []
        for index, (rows, tensors) in enumerate(zip(inputs.of_linears, self.operands, strict=True)):
            found = self.multiply(index, rows, tensors).float()
            errors.append(float((found - exact[index]).norm() / exact[index].norm()))
        worst = max(errors)
        if not worst <= self.largest_error:  # NaN is wrong, too
            sys.exit(f"{name}: relative errors {errors}, at most {self.largest_error:.3f}")
        return worst


def bf16_case(weights: Sequence[Tensor]) -> Case:
    return Case(lambda _, x, w: torch.mm(x, w[0].t()), [(w,) for w in weights], 0.01)


def our_case(weights: Sequence[Tensor], formats: Format, packed: bool) -> Case:
    """Quantizer and product, the Hadamard transform included."""
    operands = [quantized(weight, formats.weight_levels, packed) for weight in weights]

    def multiply(_: int, x: Tensor, tensors: Tensors) -> Tensor:
        return hadamard_linear(x, row_format(x.shape[1], formats), matrix_of(*tensors, formats))

    kept = (1 - DISTORTION[formats.weight_levels]) * (1 - DISTORTION[formats.activation_levels])
    return Case(multiply, operands, 1.2 * math.sqrt(1 - kept))


def gemlite_case(processor: str, weights: Sequence[Tensor]) -> Case:
    """gemlite's own layers, called by their tensors so that these can be copied."""
    import gemlite

    layers = [gemlite_layer(processor, weight) for weight in weights]
    settings = [layer.get_meta_args() for layer in layers]

    def multiply(index: int, x: Tensor, tensors: Tensors) -> Tensor:
        out: Tensor = gemlite.forward_functional(x, None, list(tensors), settings[index])
        return out

    operands = [tuple(layer.get_tensor_args()) for layer in layers]
    return Case(multiply, operands, GEMLITE_ERRORS[processor])


def gemlite_layer(processor: str, weight: Tensor) -> Any:
    """The linear of a bf16 ``weight [N, K]``."""
    from gemlite.helper import A16W4_HQQ_INT, A8W8_INT8_dynamic

    device = str(weight.device)
    if processor == "A8W8":
        return A8W8_INT8_dynamic(device=device, dtype=DTYPE).from_weights(weight)
    return A16W4_HQQ_INT(device=device, dtype=DTYPE).from_weights(*four_bit_groups(weight))


def four_bit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``weight [N, K] ≈ (q - zeros) · scales``: q uint8 ``[N, K]`` in 0..15, bf16 scales and zeros
    ``[N, K / GROUP]``, from each group's least to its greatest element."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / 15).to(DTYPE)
    zeros = (-low / scales.float()).to(DTYPE)
    q = (groups / scales.float()[..., None] + zeros.float()[..., None]).round().clamp(0, 15)
    return q.flatten(1).to(torch.uint8), scales, zeros


def compile_ahead(configs: str, processor: str, n: int, k: int, tokens: Sequence[int]) -> None:
    """In a process of its own: run all that gemlite would try for a shape once, untimed, so that
    Triton's cache on disk holds it."""
    import triton.testing

    def once(call: Callable[[], object], **_: object) -> list[float]:
        call()
        return [1.0, 1.0, 1.0]

    triton.testing.do_bench = once
    load_configs(configs)
    device = torch.device("cuda")
    layer = gemlite_layer(processor, normal(n, k, device, std=0.02))
    for count in tokens:
        layer(normal(count, k, device))
    torch.cuda.synchronize()


def load_configs(path: str) -> None:
    import gemlite

    if Path(path).exists():
        gemlite.load_config(path)


def compile_all(models: Sequence[ModelConfig], options: argparse.Namespace) -> None:
    """All shapes by all cores; what is not done in time is compiled when it is tuned."""
    groups = [
        [count for count in options.tokens if low <= count < high]
        for low, high in pairwise(KERNEL_TOKENS)
    ]
    jobs = [
        (options.configs, processor, product.out_features, product.in_features, group)
        for model in models
        for product in block_products(model)
        for processor in GEMLITE_ERRORS
        for group in reversed(groups)  # what takes longest begins first
        if group
    ]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        waiting = pool.starmap_async(compile_ahead, jobs, chunksize=1)
        try:
            waiting.get(COMPILING * 60 * options.minutes)
        except multiprocessing.TimeoutError:
            print("compiling ahead was cut short", flush=True)
    print(f"compiled {len(jobs)} shapes: {time.monotonic() - started:.0f} s", flush=True)


def bench_model(
    results: Results, model: ModelConfig, options: argparse.Namespace, deadline: float
) -> bool:
    """Rows of each row count; whether all were measured before ``deadline``."""
    device = torch.device("cuda")
    products = block_products(model)
    weights = [normal(p.out_features, p.in_features, device, std=0.02) for p in products]
    rivals = {f"gemlite {name}": gemlite_case(name, weights) for name in GEMLITE_ERRORS}
    for tokens in options.tokens:
        if time.monotonic() > deadline:
            print(f"{model.name}: out of time before {tokens} rows", flush=True)
            return False
        cases = {"bf16": bf16_case(weights), **rivals}
        for bits in options.bits:
            formats = format_of(parse_bits(bits))
            packed = weight_kinds(formats, tokens, device)[0] == "packed"
            cases[bits] = our_case(weights, formats, packed)
        rows = measured(cases, weights, tokens, options)
        results.add([{"model": model.name, "tokens": tokens, **row} for row in rows])
        print(line(model.name, tokens, rows), flush=True)
    return True


def measured(
    cases: Mapping[str, Case], weights: Sequence[Tensor], tokens: int, options: argparse.Namespace
) -> list[Row]:
    """A row a case: microseconds, ``speedup`` over ``bf16``, ``over_gemlite`` (over its faster
    one), ``weight_bytes`` and the largest ``relative_error`` of its four products."""
    hidden, inner, device = weights[0].shape[1], weights[3].shape[1], weights[0].device
    inputs = Inputs(
        normal(tokens, hidden, device),
        normal(tokens, hidden, device),
        normal(tokens, inner, device),
        torch.ones(hidden, device=device),
    )
    exact = [x.float() @ w.float().t() for x, w in zip(inputs.of_linears, weights, strict=True)]
    errors = {name: case.check(name, inputs, exact) for name, case in cases.items()}  # and tunes

    import gemlite

    gemlite.cache_config(options.configs)
    calls = {name: case.calls(inputs) for name, case in cases.items()}
    timings: dict[str, Timing] = measure(calls, options.rounds, options.milliseconds, device)
    best = min(timings[f"gemlite {name}"].median for name in GEMLITE_ERRORS)
    return [
        timing_row(
            {},
            name,
            timing,
            speedup=timings["bf16"].median / timing.median,
            over_gemlite=best / timing.median,
            weight_bytes=sum(total_bytes(*tensors) for tensors in cases[name].operands),
            relative_error=errors[name],
        )
        for name, timing in timings.items()
    ]


def line(model: str, tokens: int, rows: Sequence[Row]) -> str:
    shown = (f"{row['case']} {row['median']:.1f} µs ({row['speedup']:.2f}×)" for row in rows)
    ours = rows[1 + len(GEMLITE_ERRORS) :]
    ratios = (f"{row['case']} {row['over_gemlite']:.2f}× gemlite's best" for row in ours)
    return f"{model}, {tokens} rows: " + ", ".join([*shown, *ratios])


def parsed() -> tuple[argparse.Namespace, list[ModelConfig]]:
    """The arguments and the models; ends with code 2 for what cannot be measured here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="+", default=["7B", "800M"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument("--configs", help="what gemlite's autotuner chose, read and added to")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--milliseconds", type=float, default=2.0, help="a sample lasts")
    options = parser.parse_args()
    options.configs = options.configs or str(options.output.with_suffix(".configs.json"))
    try:
        models = models_named(options.models)
        for model in models:
            if any(product.in_features % GROUP for product in block_products(model)):
                raise UserError(f"{model.name}: gemlite's groups of {GROUP} do not fit its widths.")
        for bits in options.bits:
            formats = format_of(parse_bits(bits))
            if not {formats.weight_levels, formats.activation_levels} <= set(DISTORTION):
                raise UserError(f"bits={bits}: give 1 to 4 bits, for example w4a4.")
    except UserError as error:
        parser.error(str(error))
    if min(options.tokens) < 1:
        parser.error("--tokens must be at least 1")
    if not torch.cuda.is_available():
        parser.error("gemlite's kernels need a CUDA GPU")
    if importlib.util.find_spec("gemlite") is None:
        parser.error("gemlite is not installed: pip install gemlite==0.6.0")
    return options, models


@torch.no_grad()
def main() -> int:
    options, models = parsed()
    deadline = time.monotonic() + 60 * options.minutes
    options.output.parent.mkdir(parents=True, exist_ok=True)
    compile_all(models, options)

    import gemlite
    import triton.testing

    triton.testing.do_bench = partial(triton.testing.do_bench, **TUNING)
    load_configs(options.configs)
    facts = environment(torch.device("cuda"), shlex.join(["python", *sys.argv]))
    facts |= {"gemlite_version": gemlite.__version__, "triton_version": triton.__version__}
    settings = {name: getattr(options, name) for name in ("rounds", "milliseconds", "bits")}
    settings |= {"gemlite_autotune": "fast", "gemlite_tuning_milliseconds": TUNING, "group": GROUP}
    results = Results("beside_gemlite", facts, settings, options.output)
    torch.manual_seed(0)
    if all(bench_model(results, model, options, deadline) for model in models):
        results.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
