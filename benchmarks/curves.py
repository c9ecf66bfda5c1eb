"""Several runs' loss curves as one JSON file and one picture.

    python benchmarks/curves.py RUN [RUN …] --json FILE --picture FILE --commands FILE

``--commands`` is a text file with the commands that made the runs; it is copied into the JSON.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from questtrain.store.files import read_json_lines

STYLES = {
    "bf16": ("#000000", "-"),
    "w4a4": ("#0072b2", "--"),
    "w2a2": ("#e69f00", "-."),
    "w1a1": ("#cc3311", ":"),
}
"""Colour-blind safe, and told apart by dashes in black and white."""


def read_run(folder: Path) -> dict[str, Any]:
    rows = read_json_lines(folder / "metrics.jsonl")
    return {
        "record": json.loads((folder / "run.json").read_text()),
        "train": [[row["step"], row["tokens"], row["train_loss"]] for row in rows if "lr" in row],
        "validation": [
            [row["step"], row["tokens"], row["val_loss"]] for row in rows if "val_loss" in row
        ],
        "periodic_diagnostics": [row for row in rows if "weight_masked_fraction" in row],
        "diagnostics": [
            json.loads(file.read_text()) for file in sorted(folder.glob("diagnostics/*.json"))
        ],
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        bits = run["record"]["bits"]
        colour, dash = STYLES.get(bits, ("#555555", "-"))
        tokens = [row[1] / 1e6 for row in run["validation"]]
        losses = [row[2] for row in run["validation"]]
        axes.plot(tokens, losses, dash, color=colour, label=f"{bits}  {losses[-1]:.3f}")
        axes.plot(
            [row[1] / 1e6 for row in run["train"]],
            [row[2] for row in run["train"]],
            color=colour,
            alpha=0.15,
            linewidth=0.8,
        )
    record = runs[0]["record"]
    axes.set(
        xlabel="training tokens (millions)",
        ylabel="loss (nats a token)",
        title=f"{record['model']} on {record['dataset']}, {record['device']}",
        ylim=(None, max(run["validation"][0][2] for run in runs) + 0.5),
    )
    axes.grid(alpha=0.25)
    axes.legend(title="validation, at the end", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--commands", type=Path, required=True)
    options = parser.parse_args()
    runs = [read_run(folder) for folder in options.runs]
    result = {
        "date": date.today().isoformat(),
        "commands": options.commands.read_text().splitlines(),
        "columns": ["step", "tokens", "loss"],
        "runs": runs,
    }
    options.json.write_text(json.dumps(result) + "\n")
    if options.picture is not None:
        draw(runs, options.picture)


if __name__ == "__main__":
    main()
