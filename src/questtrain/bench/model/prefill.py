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

from questtrain.bench.model.random_models import (
    packed_model,
    random_tokens,
    shape_of,
    stacked_model,
)
from questtrain.bench.results import Results, speed_rows
from questtrain.bench.settings import PrefillConfig
from questtrain.bench.timing import measure
from questtrain.config import ModelConfig, parse_bits

log = logging.getLogger(__name__)

PREFILL_NAMES = {"unpack": "", "int8": ", INT8 kept"}
"""What weights are multiplied as, and how the case is called: packed codes, unpacked at each use,
or INT8 values kept beside them."""
INPUTS = 2
"""Different token ids that a case alternates between."""


@torch.no_grad()
def bench_prefill(
    results: Results, models: Sequence[ModelConfig], config: PrefillConfig, device: torch.device
) -> None:
    """Fill ``results``, a batch size at a time: ``tokens_per_second`` and ``speedup`` over BF16."""
    for model in models:
        torch.compiler.reset()
        cases = _cases(model, config, device)
        for batch_size in config.batch_sizes:
            length = config.sequence_length
            inputs = [random_tokens(model, batch_size, length, device) for _ in range(INPUTS)]
            calls = {
                case: [partial(m, t, logits_to_keep=1) for t in inputs] for case, m in cases.items()
            }
            try:
                timings = measure(calls, config.rounds, config.milliseconds, device)
            except torch.OutOfMemoryError:
                log.warning("%s, batch %d: does not fit into memory", model.name, batch_size)
                continue
            what = shape_of(model, batch_size) | {"sequence_length": length}
            results.add(speed_rows(what, timings, batch_size * length))
            log.info("%s, batch %d", model.name, batch_size)


def _cases(
    model: ModelConfig, config: PrefillConfig, device: torch.device
) -> dict[str, Callable[..., object]]:
    """The rival and the packed models, compiled alike."""
    bits = parse_bits(config.bits)
    cases = {"bf16": stacked_model(model, device)}
    for kind in config.prefill:
        cases[f"{bits}{PREFILL_NAMES[kind]}"] = packed_model(model, bits, device, kind)
    if not config.compile:
        return dict(cases)
    return {case: torch.compile(each, fullgraph=True) for case, each in cases.items()}
