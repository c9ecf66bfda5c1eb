"""The picture of a run's loss, drawn from its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from questtrain.store.files import atomic_write, writing


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
