"""Finished runs for the figures of the law: from a known law, and small scans, all synthetic."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.scaling import CONTENT, make_run

SIZES = {"30M": 30_482_560, "50M": 49_556_736, "100M": 102_777_856, "200M": 203_188_480}
NOMINAL = {"30M": 30e6, "50M": 50e6, "100M": 100e6, "200M": 200e6}
EFF = {
    "1": 0.02,
    "2": 0.16,
    "3": 0.43,
    "4": 0.70,
    "8": 0.98,
    "16": 1.0,
    "fp4": 0.62,
    "w4s24a4": 0.38,
    "w2a16": 0.42,
    "w4a16": 0.84,
    "2-quest-noht": 0.08,
    "4-quest-noht": 0.60,
    "4-lsq": 0.55,
}


def law_loss(params: float, tokens: float, precision: str) -> float:
    """The law that the synthetic runs obey exactly."""
    return 300 / (params * EFF[precision]) ** 0.3 + 800 / tokens**0.32 + 1.2


def law_rows(
    precisions: Iterable[str] = tuple(EFF),
    sizes: Iterable[str] = tuple(SIZES),
    ratios: Iterable[float] = (25, 100),
) -> list[dict[str, Any]]:
    """A row a precision, size and tokens/parameter ratio."""
    return [
        {
            "name": f"{model}-{precision}-{ratio:g}",
            "model": model,
            "dataset": "c4",
            "non_embedding_params": SIZES[model],
            "tokens": ratio * NOMINAL[model],
            "precision": precision,
            "val_loss": law_loss(SIZES[model], ratio * NOMINAL[model], precision),
        }
        for precision in precisions
        for model in sizes
        for ratio in ratios
    ]


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_law_table(path: Path, **choice: Any) -> Path:
    """The rows of `law_rows` as a CSV."""
    return write_table(path, law_rows(**choice))


def finish(
    folder: Path,
    bits: str = "w4a4",
    method: str = "quest",
    val_loss: float | None = 3.3,
    metrics: Iterable[Mapping[str, Any]] = (),
    **columns: Any,
) -> Path:
    """A run folder of 30M and 3B tokens with its record; ``columns`` replace those of it."""
    make_run(folder, bits=bits, method=None if method == "none" else method)
    record = {
        "name": folder.name,
        "status": "completed",
        "model": "30M",
        "non_embedding_params": SIZES["30M"],
        "bits": bits,
        "method": method,
        "hadamard": method == "quest",
        "dataset": "c4",
        "tokens": 2_999_975_936,
        "seed": 0,
        "val_loss": val_loss,
    }
    (folder / "run.json").write_text(json.dumps(record | columns))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def training(end: float, steps: int = 2000, every: int = 10) -> list[dict[str, Any]]:
    """Rows whose loss falls from 10 to about ``end``."""
    return [
        {"step": s, "train_loss": end + (10 - end) * math.exp(-s / 100), "tokens": 1000 * s}
        for s in range(every, steps + 1, every)
    ]


def runs_for(name: str, folder: Path) -> Path:
    """Runs that the figure ``name`` can be drawn from."""
    if name in CONTENT:
        return make_run(folder / "run", name)
    match name:
        case "lsq":
            for method in ("quest", "lsq"):
                for bits in (2, 4):
                    finish(folder / f"{method}{bits}", f"w{bits}a{bits}", method, 3.5 - bits / 20)
            finish(folder / "bf16", "bf16", "none", 3.2)
        case "trust-scale":
            for t in (1.0, 1.25, 1.5):
                loss = 4 + (t - 1.3) ** 2
                finish(folder / f"q{t}", "w1a1", val_loss=loss, trust_scale=t)
                finish(folder / f"n{t}", "w1a1", "quest-noht", loss + 0.1, trust_scale=t)
        case "curves":
            for method, end in (("quest", 3.3), ("lsq", 3.4), ("pact", 6.0)):
                finish(folder / method, method=method, metrics=training(end))
        case "pact":
            for scale, decay in ((0.1, 0.01), (1.0, 0.01), (0.1, 0.1)):
                settings = {"lr_scale": scale, "scale_weight_decay": decay}
                finish(folder / f"{scale}-{decay}", "w4a4", "pact", 4 + scale + decay, **settings)
        case "table4":
            for bits, decay in ((2, 0.1), (2, 1.0), (4, 0.1)):
                loss = 3.6 - bits / 10 + decay / 10
                run = folder / f"{bits}-{decay}"
                finish(run, f"w{bits}a{bits}", "lsq", loss, scale_weight_decay=decay, lr_scale=1.0)
        case "table2":
            for bits, acc in (("bf16", 0.3952), ("w4a4", 0.3922)):
                method = "none" if bits == "bf16" else "quest"
                results = {"hellaswag.acc": acc, "hellaswag.acc_stderr": 0.0049}
                finish(folder / bits, bits, method, 3.2, evaluations=results)
        case _:
            return write_law_table(folder / "runs.csv")
    return folder
