"""Back to an earlier step, without the batches that led to trouble (``train.on_divergence``).

Skipped are the batch at which trouble was seen and those before it, ``train.skip_batches`` in all:
a loss is that of weights which the batch before has updated. The batches after them move up, so
that updates and learning rates stay those of the configuration. The run goes back to the newest
intact checkpoint that has learned none of them: from there it is, bit for bit, the run that never
met them, wherever its checkpoints lie and however often it was stopped.
"""

from __future__ import annotations

import logging
from pathlib import Path

from questtrain.config import LoopConfig, TrainConfig
from questtrain.config.switch import switch_step
from questtrain.data import Loader, TokenDataset
from questtrain.errors import TrainingStopped, UserError, counted
from questtrain.store.checkpoint import latest_checkpoint
from questtrain.store.checkpoint_folders import checkpoint_folders, step_of
from questtrain.store.files import remove_folder
from questtrain.store.initial_weights import read_initial_weights
from questtrain.store.rollbacks import Rollback, read_rollbacks, write_rollbacks
from questtrain.train.divergence import Trouble
from questtrain.train.initial_weights import first_weights
from questtrain.train.weight_source import WeightSource

log = logging.getLogger(__name__)


class CannotGoBack(TrainingStopped):
    """Why a run ends at trouble: words that go on after what the trouble is, and a comma."""


def go_back(
    folder: Path, config: TrainConfig, dataset: TokenDataset, loader: Loader, trouble: Trouble
) -> tuple[int, WeightSource | None]:
    """Make ``folder`` that of a run which goes on from an earlier step; returns the step, and the
    weights of others that it starts with again where that is 0 (see ``init_from``).

    CannotGoBack, and nothing is changed, where that was done often enough or cannot be done;
    UserError where every checkpoint that would do is damaged. A kill at any moment leaves a folder
    that goes on to the same end: without its newest checkpoints the run meets the trouble again.
    """
    done = read_rollbacks(folder)
    if len(done) >= config.train.max_rollbacks:
        times = counted(len(done), "rollback", "rollbacks")
        raise CannotGoBack(f"after {times}, and train.max_rollbacks={config.train.max_rollbacks}")
    first = max(0, trouble.step + 1 - config.train.skip_batches)
    checkpoint = latest_checkpoint(folder, newest_before(config, first))
    step = 0 if checkpoint is None else checkpoint.step
    initial = _weights_of_start(folder, config, dataset) if checkpoint is None else None
    for newer in reversed(checkpoint_folders(folder)):
        if step_of(newer) > step:
            remove_folder(newer)
    skipped = [loader.number(update) for update in range(first, trouble.step + 1)]
    write_rollbacks(folder, [*done, Rollback(trouble.step + 1, trouble.what, step, skipped)])
    log.warning(
        "%s: back to step %d, and without %s %s (rollback %d of at most %d)",
        trouble.what,
        step,
        "batch" if len(skipped) == 1 else "batches",
        f"{skipped[0]}" if len(skipped) == 1 else f"{skipped[0]} to {skipped[-1]}",
        len(done) + 1,
        config.train.max_rollbacks,
    )
    return step, initial


def newest_before(config: TrainConfig, update: int) -> int:
    """The last step that is independent of the batch of an update (from 0): where the run changes
    its bits, learned scales have started from it already."""
    return update - 1 if update == switch_step(config) else update


def step_to_keep(settings: LoopConfig, step: int) -> int | None:
    """The newest intact checkpoint of at most this step may be gone back to, once ``step`` updates
    are made; None where no run goes back."""
    return None if settings.on_divergence == "stop" else step - settings.skip_batches


def _weights_of_start(
    folder: Path, config: TrainConfig, dataset: TokenDataset
) -> WeightSource | None:
    """None for a run that makes its own."""
    began = read_initial_weights(folder)
    try:
        source = first_weights(config, dataset)
    except UserError as error:
        raise CannotGoBack(f"and it cannot start again: {error.args[0].rstrip('.')}") from error
    if source is not None and began != source.facts(str(config.init_from)):
        raise CannotGoBack(f"and init_from={config.init_from} holds other weights by now")
    return source
