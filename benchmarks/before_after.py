"""One benchmark of two checkouts in turn, on one device: what a change did to its speed.

    python benchmarks/before_after.py BEFORE AFTER OUTPUT [--turns N] -- train models=30M …

BEFORE and AFTER are the ``src`` folders of two checkouts whose kernels are built. Each turn runs
``questtrain bench …`` once with either, in a process of its own; which goes first alternates. A
row's time is its median within a turn; OUTPUT holds all turns and, for every row, the ratio after /
before of the medians over turns and the spread of the turns themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KEYS = ("model", "micro_batch_size", "layers", "batch_size", "context", "case")


def one_run(source: Path, words: list[str]) -> dict[str, Any]:
    """The results' file of one benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "questtrain.cli.main", "bench", *words, f"output={output}"]
        paths = [str(source.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            sys.exit(f"{source}: {' '.join(command)} ended with {done.returncode}")
        result: dict[str, Any] = json.loads(output.read_text())
    del result["environment"]["command"], result["settings"]["output"]  # of this turn alone
    return result


def name_of(row: dict[str, Any]) -> str:
    return " ".join(f"{key}={row[key]}" for key in KEYS if key in row)


def compared(turns: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every row's medians of all turns, and their ratio."""
    medians: dict[str, dict[str, list[float]]] = {}
    for turn in turns:
        for side, result in turn.items():
            for row in result["rows"]:
                sides = medians.setdefault(name_of(row), {"before": [], "after": []})
                sides[side].append(row["median"])
    rows = []
    for name, sides in medians.items():
        before, after = (statistics.median(sides[side]) for side in ("before", "after"))
        spread = max((max(times) - min(times)) / min(times) for times in sides.values())
        rows.append({"row": name, "ratio": after / before, "spread": spread, **sides})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("words", nargs="+", help="the benchmark and its settings, behind --")
    options = parser.parse_args()
    sources = {"before": options.before, "after": options.after}
    turns: list[dict[str, dict[str, Any]]] = []
    for number in range(options.turns):
        order = ("before", "after") if number % 2 == 0 else ("after", "before")
        turns.append({side: one_run(sources[side], options.words) for side in order})
        rows = compared(turns)
        command = "questtrain bench " + " ".join(options.words)
        record = {"command": command, "compared": rows, "turns": turns}
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['row']:<60} after/before {row['ratio']:.3f}  spread {row['spread']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
