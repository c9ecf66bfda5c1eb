"""A token a sequence a step, after a context: packed against BF16.

`questtrain.inference.Decoder` runs both: the same static key/value cache and attention, four
products a block, and one captured CUDA graph a step. Blocks of torch's operations are compiled, one
for all layers; those of a `PackedLlama` are kernels of ours already. The cases take turns; each
turn prefills its context anew, takes some steps that are not timed, then as many that are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from questtrain.bench.model.random_models import (
    packed_model,
    random_tokens,
    shape_of,
    stacked_model,
)
from questtrain.bench.results import Results, speed_rows
from questtrain.bench.settings import DecodeConfig
from questtrain.bench.timing import Timing, mark, microseconds, timing, turns
from questtrain.config import ModelConfig, parse_bits
from questtrain.inference import Decoder
from questtrain.model import PackedLlama

log = logging.getLogger(__name__)


@torch.no_grad()
def bench_decode(
    results: Results, models: Sequence[ModelConfig], config: DecodeConfig, device: torch.device
) -> None:
    """Fill ``results``, a batch size at a time: microseconds a step, ``tokens_per_second`` of all
    sequences together and ``speedup`` over BF16. What does not fit into memory is left out."""
    for model in models:
        try:
            cases = _cases(model, config, device)
        except torch.OutOfMemoryError:
            log.warning("%s, %d layers: does not fit into memory", model.name, model.num_layers)
            continue
        for batch_size in config.batch_sizes:
            torch.compiler.reset()  # blocks are compiled for one batch size, and there is a limit
            prompt = random_tokens(model, batch_size, config.context, device)
            try:
                timings = measure_steps(cases, prompt, config.steps, config.rounds)
            except torch.OutOfMemoryError:
                log.warning("%s, batch %d: does not fit into memory", model.name, batch_size)
                continue
            what = shape_of(model, batch_size) | {"context": config.context}
            results.add(speed_rows(what, timings, batch_size))
            log.info("%s, batch %d", model.name, batch_size)
        del cases  # before the next model is built


def _cases(model: ModelConfig, config: DecodeConfig, device: torch.device) -> dict[str, nn.Module]:
    """The rival last, when what the others were made from is gone; it comes first in the table."""
    bits = [parse_bits(text) for text in config.bits]
    packed = {str(each): packed_model(model, each, device) for each in bits}
    cases = {"bf16": stacked_model(model, device), **packed}
    for case in cases.values():
        if config.compile and not isinstance(case, PackedLlama):
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
    for turn, case in turns(decoders, rounds + 1):
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
    start = mark(prompt_BT.device)
    for _ in range(steps):
        decoder.step(tokens_B)
    return microseconds(start, mark(prompt_BT.device)) / steps
