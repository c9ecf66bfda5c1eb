"""A small sweep of every kind of run, some of them hostile, and the page made of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from questtrain.scaling.report import write_report
from tests.scaling import make_run
from tests.scaling.law_runs import SIZES, finish, law_loss, law_rows, write_table

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
OWN_LABEL = '<b>mine</b> & "yours"\'s 5 %{x}'
TITLE = "Grid <of> 30M & more"
TOKENS = 2_999_975_936


def make_runs(folder: Path) -> list[str]:
    """Paths of a sweep with metrics, and of a table that makes a law of them; below ``folder``."""
    sweep = folder / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"name": "scaling", "title": TITLE}))
    for bits in ("w1a1", "w4a4", "bf16"):
        precision = {"w1a1": "1", "w4a4": "4", "bf16": "16"}[bits]
        loss = law_loss(SIZES["30M"], TOKENS, precision)
        method = "none" if bits == "bf16" else "quest"
        finish(sweep / f"run-{bits}", bits, method, loss, metrics(loss), lr=1.2e-3, seed=7)
    loss = 1.002 * law_loss(SIZES["30M"], TOKENS, "4")
    finish(sweep / "hostile", val_loss=loss, metrics=metrics(loss), name=HOSTILE)
    finish(sweep / "gone", val_loss=None, metrics=metrics(9.0, 40), status="diverged")
    make_run(sweep / "started", bits="w2a2")
    lines = "".join(json.dumps(row) + "\n" for row in metrics(4.0, 500))
    (sweep / "started" / "metrics.jsonl").write_text(lines)
    (sweep / "torn").mkdir()
    (sweep / "torn" / "run.json").write_text('{"name": "to')
    rows = law_rows(("1", "2", "4", "8", "16", "4-lsq"))
    rows += [{**rows[3], "precision": OWN_LABEL, "name": "own", "val_loss": 3.5}]
    random.Random(0).shuffle(rows)
    noise = random.Random(1)
    rows = [row | {"val_loss": row["val_loss"] * noise.gauss(1, 0.003)} for row in rows]
    return [str(sweep), str(write_table(folder / "grid.csv", rows))]


def metrics(end: float, steps: int = 2000) -> list[dict[str, float]]:
    """Noisy training rows and a validation every 200 steps, 1.5M tokens a step."""
    noise = random.Random(steps)
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = end + 7 / step**0.5 - 7 / 2000**0.5
        tokens = step * 1_500_000
        rows.append({"step": step, "train_loss": loss + noise.gauss(0, 0.05), "tokens": tokens})
        if step % 200 == 0:
            rows.append({"step": step, "val_loss": loss, "tokens": tokens})
    return rows


def make_page(folder: Path) -> tuple[Path, list[str]]:
    """The page of `make_runs`, and the paths that it shows."""
    runs = make_runs(folder)
    path = folder / "page.html"
    write_report(path, runs, words=[*runs, "-o", "page.html"])
    return path, runs
