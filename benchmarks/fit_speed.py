"""How long `questtrain fit` takes on a grid of the paper's size: 104 points of 16 precisions.

    python benchmarks/fit_speed.py [OUTPUT.json]

Points come from the published law with 0.4% noise. Whole processes are timed (start of Python
included), alternating: without intervals, with the default bootstrap.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from questtrain.scaling.paper import PAPER_LAW
from questtrain.version import __version__

REPEATS = 7
SIZES = (30.5e6, 49.6e6, 102.8e6, 203.2e6, 443.1e6, 822.2e6)
PRECISIONS = [*PAPER_LAW.precisions, "4-lsq", "2-lsq", "3-lsq", "4-ste"]
POINTS = 104


def table() -> str:
    """A CSV of the first POINTS of sizes × ratios × precisions; methods cost 20% of eff."""
    rng = np.random.default_rng(0)
    rows = ["non_embedding_params,tokens,precision,val_loss"]
    for ratio in (100, 50):
        for size in SIZES[: 6 if ratio == 100 else 2]:
            for label in PRECISIONS:
                params = size if label in PAPER_LAW.precisions else 0.8 * size
                loss = PAPER_LAW.loss(params, size * ratio, label.partition("-")[0])
                rows.append(f"{size},{size * ratio},{label},{loss * np.exp(0.004 * rng.normal())}")
    return "\n".join(rows[: POINTS + 1]) + "\n"


def seconds(words: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "questtrain.cli.main", *words], check=True, capture_output=True
    )
    return time.monotonic() - start


def main(output: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "runs.csv"
        csv.write_text(table())
        cases = {
            "fit": ["fit", str(csv), "bootstrap=0"],
            "fit with 1000 bootstrap samples": ["fit", str(csv)],
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPEATS):
            for name, words in cases.items():
                times[name].append(round(seconds(words), 3))
    result = {
        "command": "python benchmarks/fit_speed.py",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "versions": {"questtrain": __version__, "numpy": np.__version__},
        "points": POINTS,
        "precisions": len(PRECISIONS),
        "seconds": {
            name: {
                "median": statistics.median(all_times),
                "minimum": min(all_times),
                "maximum": max(all_times),
                "all": all_times,
            }
            for name, all_times in times.items()
        },
    }
    print(json.dumps(result["seconds"], indent=2))
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
