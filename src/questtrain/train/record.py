"""What a run leaves when it ends: its record (what it is, what it reached, and on which machine),
and the picture of its loss."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from questtrain.config import TrainConfig, bits_text, steps
from questtrain.data import TokenDataset, passes
from questtrain.data.identity import DataIdentity
from questtrain.device import device_name, peak_memory_bytes
from questtrain.store.evaluations import evaluated_columns
from questtrain.store.files import atomic_write, write_json, writing
from questtrain.store.initial_weights import read_initial_weights
from questtrain.store.metric_rows import read_metric_rows
from questtrain.store.revision import git_revision
from questtrain.store.rollbacks import read_rollbacks, skipped_batches
from questtrain.store.run_record import FILE, RunRecord, Status, identity_columns
from questtrain.version import __version__


def leave_record(
    folder: Path,
    config: TrainConfig,
    status: Status,
    dataset: TokenDataset,
    step: int,
    wall_seconds: float,
    device: torch.device,
    world_size: int,
) -> RunRecord:
    """Write what a run leaves in its folder when it ends after ``step`` updates: the picture, and
    the record, in which are columns of that step's evaluations; ``device`` is one of
    ``world_size``."""
    rows = read_metric_rows(folder / "metrics.jsonl")
    initial, rollbacks = read_initial_weights(folder), read_rollbacks(folder)
    record = RunRecord(
        **identity_columns(config),
        **_found(rows),
        status=status,
        tokenizer=dataset.tokenizer.label,
        wall_seconds=round(wall_seconds, 1),
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        questtrain_version=__version__,
        git_revision=git_revision(),
        torch_version=torch.__version__,
        world_size=world_size,
        data_sha256=DataIdentity.of(dataset).corpus_sha256,
        data_tokens=dataset.train.num_tokens,
        epochs=round(epochs(config, dataset), 4),
        init_sha256=None if initial is None else initial.sha256,
        rollbacks=len(rollbacks),
        skipped_batches=len(skipped_batches(rollbacks)),
        evaluations=evaluated_columns(folder, step),
    )
    title = f"{config.model.name} {bits_text(config)}"
    draw_loss(rows, title, folder / "figures" / "loss.png", dataset.unigram_entropy)
    write_json(folder / FILE, record.content)
    return record


def _found(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns that the rows of metrics.jsonl make.

    ``train_loss`` is the mean over the last tenth of the logged steps, ``val_loss`` the last
    validation's, ``tokens_per_second`` and ``mfu`` are medians.
    """
    logged = [row for row in rows if "train_loss" in row]
    tail = logged[-max(1, len(logged) // 10) :]
    return {
        "train_loss": statistics.fmean(row["train_loss"] for row in tail) if tail else None,
        "val_loss": next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        "tokens_per_second": _median(logged, "tokens_per_second"),
        "mfu": _median(logged, "mfu"),
    }


def epochs(config: TrainConfig, dataset: TokenDataset) -> float:
    """Passes of the run over its training data."""
    samples = steps(config) * config.batch_size
    return passes(dataset.train, config.sequence_length, samples)


def draw_loss(
    rows: list[dict[str, Any]], title: str, path: Path, unigram_entropy: float | None = None
) -> None:
    """Training and validation loss over tokens as a PNG; the unigram entropy as a dotted line."""
    from matplotlib.figure import Figure

    training = [row for row in rows if "train_loss" in row]
    validation = [row for row in rows if "val_loss" in row]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [row["tokens"] / 1e6 for row in training],
        [row["train_loss"] for row in training],
        color="#9ecae1",
        linewidth=1,
        label="training (one batch)",
    )
    axes.plot(
        [row["tokens"] / 1e6 for row in validation],
        [row["val_loss"] for row in validation],
        color="#08519c",
        marker="o",
        markersize=3,
        label="validation",
    )
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="0.4", linestyle=":", label="unigram entropy")
    axes.set(xlabel="training tokens (millions)", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None
