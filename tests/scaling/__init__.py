"""Synthetic run folders with diagnostic records, as `questtrain diagnose` leaves them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.scaling.figures import FIGURES

BLOCKS = [{"block": block, "mean": 0.9 + block / 100, "std": 0.003} for block in range(4)]
POINTS = [{"step": 200 * i, "fraction": 1e-4 * (1 + i)} for i in range(5)]
RETAINED = [[None, 0.5, 0.25], [None, None, 0.055], [None, None, None]]
CONTENT: dict[str, dict[str, Any]] = {
    "alignment": {"step": 1000, "batches": 8, "batch_tokens": 16384, "blocks": BLOCKS},
    "mask": {"step": 800, "expected": 1e-4, "points": POINTS},
    "persistence": {
        "step": 400,
        "steps": [0, 200, 1400],
        "masked": [123, 130, 140],
        "retained": RETAINED,
    },
}


def make_run(
    folder: Path,
    *whats: str,
    model: str = "30M",
    bits: str = "w8a8",
    method: str | None = "quest",
    seed: int = 0,
    **content: Any,
) -> Path:
    """A run folder with the records ``whats``; ``content`` replaces what they hold."""
    (folder / "diagnostics").mkdir(parents=True)
    words = [f"model={model}", f"bits={bits}", f"method={method or 'quest'}", f"seed={seed}"]
    config = train_config(parse_arguments([*words, f"name={folder.name}"]))
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    head = {"name": folder.name, "model": model, "bits": bits, "method": method, "seed": seed}
    head["hadamard"] = config.quant.rotation == "hadamard"
    for what in whats:
        write_record(folder, what, {"what": what} | head | CONTENT[what] | content)
    return folder


def write_record(folder: Path, what: str, record: Any) -> None:
    (folder / "diagnostics" / f"{what}.json").write_text(json.dumps(record))


def read_record(folder: Path, what: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "diagnostics" / f"{what}.json").read_text())
    return record


def drawn(name, *runs):
    """The figure as `questtrain plot` makes it, laid out."""
    figure = FIGURES[name].draw(FIGURES[name].data(runs))
    figure.draw_without_rendering()
    return figure


def legend(figure):
    (found,) = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    return [text.get_text() for text in found.get_texts()]
