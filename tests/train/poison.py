"""Batches that do harm: ``python -m tests.train.poison train …`` is ``questtrain train …`` in which
they do, and `poison` makes them do it in the process of a test.

``POISON`` in the environment has words like ``nan:8,9``: what happens when an update takes these
batches (their numbers, whatever the step). ``nan``: a weight of the last rank is NaN before the
update; ``after``: after it; ``spike``: the head is 30 times what it was; ``term`` and ``kill``: the
last rank sends itself the signal, once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from questtrain.cli.main import main
from questtrain.train.trainer import Trainer

Update = Callable[[Trainer], dict[str, Any]]


def harmful(update: Update, words: str) -> Update:
    """``update`` as it is when ``words`` say which batches do what."""
    harm = {
        int(number): kind
        for kind, _, numbers in (word.partition(":") for word in words.split())
        for number in numbers.split(",")
    }

    @torch.no_grad()
    def set_weights(trainer: Trainer, factor: float) -> None:
        if trainer.world.rank == trainer.world.size - 1:
            trainer.model.lm_head.weight[: 1 if factor != factor else None] *= factor

    def updating(trainer: Trainer) -> dict[str, Any]:
        kind = harm.get(trainer.loader.number(trainer.step))
        if kind in ("term", "kill") and trainer.world.rank == trainer.world.size - 1:
            harm.clear()
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        if kind in ("nan", "spike"):
            set_weights(trainer, float("nan") if kind == "nan" else 30.0)
        row = update(trainer)
        if kind == "after":
            set_weights(trainer, float("nan"))
        return row

    return updating


if __name__ == "__main__":
    Trainer._update = harmful(Trainer._update, os.environ.get("POISON", ""))
    sys.exit(main(sys.argv[1:]))
