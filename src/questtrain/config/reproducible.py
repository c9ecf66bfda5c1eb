"""``train.reproducible``: runs whose bits do not depend on how many processes train them."""

from __future__ import annotations

from questtrain.config.schema import TrainConfig
from questtrain.errors import UserError

SHARDS = 8
"""A batch is this many virtual shards, rows that follow each other. A process computes whole ones,
one after the other, and gradients are summed in a binary tree over them, whoever has them."""

PROCESSES = tuple(1 << n for n in range(SHARDS.bit_length()))
"""How many processes have each a whole branch of the tree: 1, 2, 4 and 8."""

DECIDES_BITS = ("compile", "micro_batch_size", "train.threads")
"""Settings that else only say how a run is run: they decide in which order numbers are summed."""


def settle_reproducible(config: TrainConfig) -> None:
    """UserError for a batch or a ``gpus`` that has no such shards. In place: ``micro_batch_size``
    is at most a shard, and ``train.threads`` 1 where it is not set: sums may depend on both."""
    rows, left = divmod(config.batch_size, SHARDS)
    if left:
        close = max(1, round(config.batch_size / SHARDS)) * SHARDS
        raise UserError(
            f"train.reproducible=true divides batches into {SHARDS} shards, and"
            f" batch_size={config.batch_size} does not divide; the nearest that does is {close}."
        )
    if config.gpus is not None:
        check_processes(config.gpus, f"gpus={config.gpus}")
    micro = config.micro_batch_size
    config.micro_batch_size = rows if micro is None else min(micro, rows)
    config.train.threads = config.train.threads or 1


def check_processes(count: int, named: str) -> None:
    """UserError unless so many processes have each as many whole shards, a branch of the tree."""
    if count in PROCESSES:
        return
    close = min(PROCESSES, key=lambda number: abs(number - count))
    *others, last = map(str, PROCESSES)
    raise UserError(
        f"train.reproducible=true takes {', '.join(others)} or {last} processes, not {named}; the"
        f" nearest is {close}."
    )
