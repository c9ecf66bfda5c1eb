"""What a checkpoint holds of a run: weights, AdamW's moments, and the losses that a spike is
measured by. All else follows from the configuration, the step and the run's folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from questtrain.store.checkpoint import Checkpoint, save_checkpoint
from questtrain.train.divergence import LossWatch
from questtrain.train.optimizer import optimizer_tensors, restore_optimizer
from questtrain.train.rollback import step_to_keep
from questtrain.train.step import TrainingStep

LOSSES = "losses"
"""The part that only a run with ``train.on_divergence=rollback`` saves."""


def save_state(
    folder: Path,
    step: int,
    update: TrainingStep,
    watch: LossWatch,
    wall_seconds: float,
    known_intact: Collection[int],
) -> None:
    """A checkpoint of ``step`` in the run's folder; see `save_checkpoint`."""
    parts = {
        "model": update.model.state_dict(),
        "optimizer": optimizer_tensors(update.model, update.optimizer),
    }
    if (losses := watch.losses) is not None:
        parts[LOSSES] = {"before": losses}
    keep = update.config.train.keep_checkpoints
    spared = step_to_keep(update.config.train, step)
    save_checkpoint(folder, step, parts, wall_seconds, keep, known_intact, spared)


def load_state(checkpoint: Checkpoint, update: TrainingStep, watch: LossWatch) -> None:
    """Into an update of the checkpoint's bits whose optimizer has no state, in place: a graph that
    was captured of it goes on to serve. UserError if it is of another model."""
    checkpoint.load_weights(update.model)
    restore_optimizer(checkpoint.tensors("optimizer"), update.model, update.optimizer)
    losses = checkpoint.tensors(LOSSES)["before"].tolist() if checkpoint.has(LOSSES) else []
    watch.begin_anew(losses)
