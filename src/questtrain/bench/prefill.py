"""Figure 7: a whole model over many tokens, packed against BF16.

What a prompt costs before its first new token: the blocks over all its tokens, the head over the
last one. Both models have four products a block, are compiled by the same settings and timed as
CUDA graphs: what differs is the blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from questtrain.bench.models import packed_model, random_tokens, stacked_model
from questtrain.bench.results import Results, timing_row
from questtrain.bench.timing import measure
from questtrain.config import Bits, ModelConfig

log = logging.getLogger(__name__)

PREFILL_NAMES = {"unpack": "", "int8": ", INT8 kept"}
"""What weights are multiplied as, and how the case is called: packed codes, unpacked at each use,
or INT8 values kept beside them."""
INPUTS = 2
"""Different token ids that a case alternates between."""


@torch.no_grad()
def bench_prefill(
    results: Results,
    models: Sequence[ModelConfig],
    bits: Bits,
    batch_sizes: Sequence[int],
    sequence_length: int,
    prefill: Sequence[str],
    device: torch.device,
    rounds: int,
    milliseconds: float,
    compile: bool,
) -> None:
    """Fill ``results``, a batch size at a time: ``tokens_per_second`` and ``speedup`` over BF16."""
    for model in models:
        torch.compiler.reset()
        cases: dict[str, Callable[..., object]] = {
            "bf16": _compiled(stacked_model(model, device), compile),
            **{
                f"{bits}{PREFILL_NAMES[kind]}": _compiled(
                    packed_model(model, bits, device, kind), compile
                )
                for kind in prefill
            },
        }
        for batch_size in batch_sizes:
            inputs = [
                random_tokens(model, batch_size, sequence_length, device) for _ in range(INPUTS)
            ]
            calls = {
                case: [partial(m, t, logits_to_keep=1) for t in inputs] for case, m in cases.items()
            }
            try:
                timings = measure(calls, rounds, milliseconds, device)
            except torch.OutOfMemoryError:
                log.warning("%s, batch %d: does not fit into memory", model.name, batch_size)
                continue
            what = {
                "model": model.name,
                "layers": model.num_layers,
                "batch_size": batch_size,
                "sequence_length": sequence_length,
            }
            results.add(
                [
                    timing_row(
                        what,
                        case,
                        timing,
                        tokens_per_second=batch_size * sequence_length / timing.median * 1e6,
                        speedup=timings["bf16"].median / timing.median,
                    )
                    for case, timing in timings.items()
                ]
            )
            log.info("%s, batch %d", model.name, batch_size)
    results.finish()


def _compiled(model: nn.Module, compile: bool) -> Callable[..., object]:
    return torch.compile(model, fullgraph=True) if compile else model
