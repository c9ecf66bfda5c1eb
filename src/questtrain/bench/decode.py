"""A token a sequence a step, after a context: packed against BF16.

`questtrain.inference.Decoder` runs both: a static key/value cache, and one captured CUDA graph a
step. The cases take turns; each turn prefills its context anew, takes some steps that are not
timed, then as many that are.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from questtrain.bench.models import dense_model, packed_model, random_tokens
from questtrain.bench.results import Results, timing_row
from questtrain.bench.timing import Timing, timing
from questtrain.config import Bits, ModelConfig
from questtrain.inference import Decoder

log = logging.getLogger(__name__)


@torch.no_grad()
def bench_decode(
    results: Results,
    models: Sequence[ModelConfig],
    bits: Sequence[Bits],
    batch_sizes: Sequence[int],
    context: int,
    steps: int,
    device: torch.device,
    rounds: int,
    compile: bool,
) -> None:
    """Fill ``results``, a batch size at a time: microseconds a step, ``tokens_per_second`` of all
    sequences together and ``speedup`` over BF16."""
    for model in models:
        built = {"bf16": dense_model(model, device)}
        built |= {str(b): packed_model(model, b, device) for b in bits}
        for batch_size in batch_sizes:
            torch.compiler.reset()  # each decoder compiles its step anew, and there is a limit
            capacity = context + 2 * steps
            decoders = {
                case: Decoder(m, batch_size, capacity, compile=compile) for case, m in built.items()
            }
            prompt = random_tokens(model, batch_size, context, device)
            timings = measure_steps(decoders, prompt, steps, rounds)
            what = {
                "model": model.name,
                "layers": model.num_layers,
                "batch_size": batch_size,
                "context": context,
            }
            results.add(
                [
                    timing_row(
                        what,
                        case,
                        taken,
                        tokens_per_second=batch_size / taken.median * 1e6,
                        speedup=timings["bf16"].median / taken.median,
                    )
                    for case, taken in timings.items()
                ]
            )
            log.info("%s, batch %d", model.name, batch_size)
    results.finish()


def measure_steps(
    decoders: dict[str, Decoder], prompt_BT: Tensor, steps: int, rounds: int
) -> dict[str, Timing]:
    """Microseconds of one step of each decoder; the cases take turns in a new order each round,
    the first round is not counted."""
    samples: dict[str, list[float]] = {case: [] for case in decoders}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for case in order.sample(list(decoders), len(decoders)):
            taken = _sample(decoders[case], prompt_BT, steps)
            if turn > 0:
                samples[case].append(taken)
    return {case: timing(values) for case, values in samples.items()}


def _sample(decoder: Decoder, prompt_BT: Tensor, steps: int) -> float:
    """Microseconds a step, after the prompt and as many steps that are not timed."""
    tokens_B = prompt_BT[:, -1].contiguous()
    decoder.prefill(prompt_BT)
    for _ in range(steps):
        decoder.step(tokens_B)
    if prompt_BT.device.type != "cuda":
        start_seconds = time.perf_counter()
        for _ in range(steps):
            decoder.step(tokens_B)
        return (time.perf_counter() - start_seconds) * 1e6 / steps
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(steps):
        decoder.step(tokens_B)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / steps
