"""What a run asks of this machine, compared with what there is, before anything is written."""

from __future__ import annotations

from dataclasses import replace

import torch

from questtrain.config import TrainConfig, intermediate_size, peak_training_bytes, total_params
from questtrain.device import host_memory_bytes
from questtrain.errors import UserError
from questtrain.process import available_cores
from questtrain.train.parallel import World
from questtrain.train.step import micro_batch_size

STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments in fp32."""

FP32_FOR_BF16 = 2
"""What a GPU keeps of a batch in two bytes takes four on a CPU."""


def set_threads(threads: int | None) -> None:
    """Let torch use so many cores; UserError for more than there are, which may end the process."""
    if threads is None:
        return
    cores = available_cores()
    if threads > cores:
        raise UserError(
            f"train.threads={threads}: {cores} cores at the most; this machine has no more for"
            " this process."
        )
    torch.set_num_threads(threads)


def check_memory(config: TrainConfig, device: torch.device, world: World) -> None:
    """UserError where training on a CPU takes more memory than this process may have.

    The estimate is that of `questtrain info`, with what depends on the batch in fp32, and the
    vocabulary as far as it is known. It is on the low side (32,768 tokens of nano at once took 1.8
    GiB beyond the program itself; it says 1.4). A GPU's own message comes within seconds.
    """
    if device.type != "cpu":
        return
    rows, model = micro_batch_size(config, world), config.model
    vocab_size = model.vocab_size or config.data.vocab_size or 0
    vocabulary = f"{'data' if model.vocab_size is None else 'model'}.vocab_size={vocab_size}"
    state = STATE_BYTES * total_params(model, vocab_size)
    on_gpu = peak_training_bytes(replace(config, micro_batch_size=rows), vocab_size)
    needed = state + FP32_FOR_BF16 * (on_gpu - state)
    there = host_memory_bytes()
    if needed > there:
        raise UserError(
            f"micro_batch_size={rows} × sequence_length={config.sequence_length} of {model.name}"
            f" (model.num_layers={model.num_layers}, model.hidden_size={model.hidden_size},"
            f" model.intermediate_size={intermediate_size(model)}, {vocabulary}) take"
            f" about {needed / 2**30:,.3g} GiB of memory, and there are {there / 2**30:,.3g}."
            " micro_batch_size=1 takes the least (the result is the same); `questtrain info …`"
            " shows what a GPU would need."
        )
