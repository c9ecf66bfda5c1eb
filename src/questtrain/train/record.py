"""The run record that training writes: what the run is, what it reached, and on which machine."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from questtrain.config import TrainConfig, steps
from questtrain.data import TokenDataset, passes
from questtrain.data.identity import DataIdentity
from questtrain.device import device_name, peak_memory_bytes
from questtrain.store.revision import git_revision
from questtrain.store.run_record import RunRecord, Status, identity_columns
from questtrain.version import __version__


def build_record(
    config: TrainConfig,
    status: Status,
    dataset: TokenDataset,
    rows: list[dict[str, Any]],
    wall_seconds: float,
    device: torch.device,
    world_size: int,
) -> RunRecord:
    """The record of a run that ended; ``rows`` are those of metrics.jsonl.

    ``train_loss`` is the mean over the last tenth of the logged steps, ``val_loss`` the last
    validation's, ``tokens_per_second`` and ``mfu`` the medians of the logged ones; ``device`` is
    one of ``world_size`` like it.
    """
    logged = [row for row in rows if "train_loss" in row]
    tail = logged[-max(1, len(logged) // 10) :]
    return RunRecord(
        **identity_columns(config),
        status=status,
        tokenizer=dataset.tokenizer.label,
        train_loss=statistics.fmean(row["train_loss"] for row in tail) if tail else None,
        val_loss=next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        wall_seconds=round(wall_seconds, 1),
        tokens_per_second=_median(logged, "tokens_per_second"),
        mfu=_median(logged, "mfu"),
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        questtrain_version=__version__,
        git_revision=git_revision(),
        torch_version=torch.__version__,
        world_size=world_size,
        data_sha256=DataIdentity.of(dataset).corpus_sha256,
        data_tokens=dataset.train.num_tokens,
        epochs=round(epochs(config, dataset), 4),
    )


def epochs(config: TrainConfig, dataset: TokenDataset) -> float:
    """Passes of the run over its training data."""
    samples = steps(config) * config.batch_size
    return passes(dataset.train, config.sequence_length, samples)


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None
