"""Synthetic run folders with diagnostic records, as `questtrain diagnose` leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    method: str = "quest",
    seed: int = 0,
    **content: Any,
) -> Path:
    """A run folder with the records ``whats``; ``content`` replaces what they hold."""
    (folder / "diagnostics").mkdir(parents=True)
    rotation = "hadamard" if method == "quest" else "none"
    (folder / "config.yaml").write_text(
        f"name: {folder.name}\nmodel: {{name: {model}}}\nbits: {bits}\nseed: {seed}\n"
        f"quant: {{method: {method}, rotation: {rotation}}}\n"
    )
    head = {"name": folder.name, "model": model, "bits": bits, "method": method, "seed": seed}
    head["hadamard"] = rotation == "hadamard"
    for what in whats:
        write_record(folder, what, {"what": what} | head | CONTENT[what] | content)
    return folder


def write_record(folder: Path, what: str, record: Any) -> None:
    (folder / "diagnostics" / f"{what}.json").write_text(json.dumps(record))


def read_record(folder: Path, what: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "diagnostics" / f"{what}.json").read_text())
    return record
