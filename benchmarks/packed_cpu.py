"""Packed weights on a CPU against float ones: one layer at several batch sizes, and decoding.

    python benchmarks/packed_cpu.py [OUTPUT.json] [--threads N] [--rounds N] [--milliseconds MS]
        [--models 30M 100M] [--formats w4a4 …] [--parts layer decode]

`layer`: a packed `QuantLinear` of 2048 × 2048 as it is used, quantization of the activations
included, against `F.linear` of a dense fp32 weight, and, as "old", against what commit ae691e6 did:
the weight unpacked in plain torch and multiplied by `torch._int_mm` (16-bit activations: its values
made, rotated back and multiplied). Without VNNI torch multiplies int8 by a plain loop, which
``--without-vnni`` has "old" take on every CPU. `decode`: models of random weights, packed and
float, continue a prompt. Cases take turns in one process; each weight is warm from the call before,
which favours the dense one, the largest. QUESTTRAIN_CPU_ISA=avx2 with ONEDNN_MAX_CPU_ISA=AVX2 hides
newer instructions from both sides.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from questtrain.bench.environment import environment
from questtrain.bench.results import Results, timing_row
from questtrain.bench.timing import measure
from questtrain.config import ModelConfig
from questtrain.inference.decode import Decoder
from questtrain.inference.pack import pack
from questtrain.kernels import container_bits, hadamard_quantize
from questtrain.model import Llama
from questtrain.quant import PackedLinear, QuantLinear, pack_linear
from questtrain.quant.method import method_config

WIDTH = 2048
BATCHES = (1, 4, 16, 64, 128, 512)
FORMATS = ("w4a4", "w2a2", "w1a1", "w4a16")
PROMPT, NEW_TOKENS, VOCABULARY = 32, 32, 32000
VARIABLES = ("QUESTTRAIN_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

Layer = Callable[[Tensor], Tensor]


def old_unpack(packed: Tensor, bits: int) -> Tensor:
    """The indices, as ae691e6 took them out of their bytes."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(1)


def old_layer(packed: nn.Module, vnni: bool) -> Layer:
    """How ae691e6 multiplied, up to 64 rows and beyond."""
    if isinstance(packed, PackedLinear):
        weight, form = packed.weight, packed.activation
        bits = container_bits(weight.levels)

        def integers(x: Tensor) -> Tensor:
            fed = hadamard_quantize(x, *form)
            codes = 2 * old_unpack(weight.codes, bits).to(torch.int8) - (weight.levels - 1)
            with torch.backends.mkldnn.flags(enabled=vnni):
                product = torch._int_mm(fed.codes, codes.t()).double()
            return (product * (fed.scales.double()[:, None] * weight.scales.double())).to(x.dtype)

        return integers

    def values(x: Tensor) -> Tensor:
        values = packed.weight.values()
        return F.linear(x, values if packed.back is None else packed.back(values))

    return values


def bench_layer(
    results: Results,
    formats: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    milliseconds: float,
    vnni: bool,
) -> None:
    dense = torch.randn(WIDTH, WIDTH)
    layers = {bits: pack_linear(QuantLinear(WIDTH, WIDTH, bits=bits)) for bits in formats}
    for batch in batches:
        x = torch.randn(batch, WIDTH)
        cases: dict[str, list[Callable[[], Any]]] = {"dense": [lambda x=x: F.linear(x, dense)]}
        for bits, layer in layers.items():
            old = old_layer(layer, vnni)
            torch.testing.assert_close(layer(x), old(x), rtol=1e-4, atol=1e-4)
            cases[f"{bits} packed"] = [lambda x=x, layer=layer: layer(x)]
            cases[f"{bits} old"] = [lambda x=x, old=old: old(x)]
        times = measure(cases, rounds, milliseconds)
        rows = []
        for name, timing in times.items():
            bits, _, kind = name.partition(" ")
            numbers = {"times_as_fast_as_dense": times["dense"].median / timing.median}
            if kind == "packed":
                numbers["times_as_fast_as_old"] = times[f"{bits} old"].median / timing.median
            what = {"part": "layer", "width": WIDTH, "batch": batch}
            rows.append(timing_row(what, name, timing, **numbers))
            ratios = ", ".join(f"{key} {value:.2f}" for key, value in numbers.items())
            print(f"batch {batch}: {name} {timing.median / 1e3:.3f} ms, {ratios}", flush=True)
        results.add(rows)


def random_model(size: str, bits: str) -> Llama:
    conf = Path(__file__).parents[1] / "conf" / "model" / f"{size}.yaml"
    model = yaml.safe_load(conf.read_text())["model"]
    config = ModelConfig(**{**model, "vocab_size": VOCABULARY})
    torch.manual_seed(0)
    return Llama(config, bits, method_config("quest")).eval().requires_grad_(False)


def frozen(model: Llama) -> Llama:
    """As `questtrain.load` without `packed`."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.freeze_weight()
    return model


def seconds_of(decoder: Decoder, prompt: Tensor) -> tuple[float, float]:
    """Of the prompt, and of a token after it."""
    start = time.perf_counter()
    logits = decoder.prefill(prompt)
    first = time.perf_counter()
    for _ in range(NEW_TOKENS):
        logits = decoder.step(logits.argmax(-1))
    return first - start, (time.perf_counter() - first) / NEW_TOKENS


def bench_decode(
    results: Results, sizes: Sequence[str], formats: Sequence[str], rounds: int
) -> None:
    for size in sizes:
        for bits in formats:
            model = random_model(size, bits)
            prompt = torch.randint(VOCABULARY, (1, PROMPT))
            decoders = {
                name: Decoder(each, 1, PROMPT + NEW_TOKENS)
                for name, each in (("float", frozen(model)), ("packed", pack(model)))
            }
            samples: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
            for number in range(rounds + 1):
                for name, decoder in decoders.items():
                    taken = seconds_of(decoder, prompt)
                    if number:  # the first warms up
                        samples[name].append(taken)
            medians = {
                name: [1e3 * statistics.median(column) for column in zip(*taken, strict=True)]
                for name, taken in samples.items()
            }
            row = {"part": "decode", "model": size, "bits": bits, "prompt": PROMPT}
            for name, (prefill, token) in medians.items():
                row |= {f"{name}_prefill_ms": prefill, f"{name}_token_ms": token}
            row["prefill_times_as_fast"] = medians["float"][0] / medians["packed"][0]
            row["token_times_as_fast"] = medians["float"][1] / medians["packed"][1]
            print(row, flush=True)
            results.add([row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--milliseconds", type=float, default=50.0, help="of a sample of a layer")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--without-vnni", action="store_true", help="the old product's loop")
    parser.add_argument("--models", nargs="+", default=["30M", "100M"])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--parts", nargs="+", choices=["layer", "decode"], default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    parts = options.parts or ["layer", "decode"]
    facts = environment(torch.device("cpu"), shlex.join(["python", *sys.argv]))
    facts["variables"] = {name: os.environ.get(name) for name in VARIABLES}
    settings = {
        name: getattr(options, name)
        for name in ("rounds", "milliseconds", "formats", "without_vnni")
    }
    results = Results("packed_cpu", facts, settings, options.output)
    with torch.inference_mode():
        if "layer" in parts:
            numbers = (options.rounds, options.milliseconds, not options.without_vnni)
            bench_layer(results, options.formats, options.batches, *numbers)
        if "decode" in parts:
            bench_decode(results, options.models, options.formats, options.rounds)
    results.finish()


if __name__ == "__main__":
    main()
