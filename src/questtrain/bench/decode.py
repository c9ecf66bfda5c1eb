"""A token a sequence a step, after a context: packed against BF16.

`questtrain.inference.Decoder` runs both: the same static key/value cache and attention, four
products a block, and one captured CUDA graph a step. Blocks of torch's operations are compiled, one
for all layers; those of a `PackedLlama` are kernels of ours already. The cases take turns; each
turn prefills its context anew, takes some steps that are not timed, then as many that are.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from questtrain.bench.models import packed_model, random_tokens, stacked_model
from questtrain.bench.results import Results, timing_row
from questtrain.bench.timing import Timing, timing
from questtrain.config import Bits, ModelConfig
from questtrain.inference import Decoder
from questtrain.model import PackedLlama

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
    sequences together and ``speedup`` over BF16. What does not fit into memory is left out."""
    for model in models:
        try:
            cases = _cases(model, bits, device, compile)
        except torch.OutOfMemoryError:
            log.warning("%s, %d layers: does not fit into memory", model.name, model.num_layers)
            continue
        for batch_size in batch_sizes:
            torch.compiler.reset()  # blocks are compiled for one batch size, and there is a limit
            prompt = random_tokens(model, batch_size, context, device)
            try:
                timings = measure_steps(cases, prompt, steps, rounds)
            except torch.OutOfMemoryError:
                log.warning("%s, batch %d: does not fit into memory", model.name, batch_size)
                continue
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
        del cases  # before the next model is built
    results.finish()


def _cases(
    model: ModelConfig, bits: Sequence[Bits], device: torch.device, compile: bool
) -> dict[str, nn.Module]:
    """The rival last, when what the others were made from is gone; it comes first in the table."""
    packed = {str(each): packed_model(model, each, device) for each in bits}
    cases = {"bf16": stacked_model(model, device), **packed}
    for case in cases.values():
        if compile and not isinstance(case, PackedLlama):
            compile_blocks(case)
    return cases


def compile_blocks(model: nn.Module) -> None:
    """Compile a Llama's blocks in place; layers differ in their tensors alone, and share what is
    compiled."""
    for block in model.get_submodule("layers").children():
        block.compile(fullgraph=True, dynamic=False)


def measure_steps(
    models: dict[str, nn.Module], prompt_BT: Tensor, steps: int, rounds: int
) -> dict[str, Timing]:
    """Microseconds of one step of each model; the cases take turns in a new order each round, the
    first round is not counted."""
    batch_size, context = prompt_BT.shape
    decoders = {
        case: Decoder(model, batch_size, context + 2 * steps) for case, model in models.items()
    }
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
    with torch.compiler.set_stance("force_eager"):  # it is not timed: compiling it is no use
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
