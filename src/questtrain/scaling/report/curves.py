"""Loss curves, thinned so that the page stays small whatever the number of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questtrain.scaling.runs import Run

TOTAL_POINTS = 60_000
MOST_POINTS, FEWEST_POINTS = 300, 16
"""Points of one training curve; all curves together share `TOTAL_POINTS`."""

SMOOTHING = 0.04
"""A point is the mean over the rows within this share of its own row number on both sides, so
that the fast beginning is not smeared and the end is calm."""

Array = NDArray[np.float64]


def curve_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run with metrics: its name, model, precision, status, the training curve as
    ``x`` (tokens) and ``y`` (nats), and the validation points as ``vx`` and ``vy``."""
    share = TOTAL_POINTS // max(1, sum(run.folder is not None for run in runs))
    limit = min(MOST_POINTS, max(FEWEST_POINTS, share))
    records = []
    for run in runs:
        rows = run.metrics()
        x, y = thinned(*_series(rows, "train_loss"), limit)
        vx, vy = _series(rows, "val_loss")
        kept = spread(len(vx), limit)
        if len(x) or len(vx):
            records.append(
                {
                    "name": run.name,
                    "model": run.model or "",
                    "precision": run.precision or "",
                    "status": run.status,
                    "x": _short(x),
                    "y": _short(y),
                    "vx": _short(vx[kept]),
                    "vy": _short(vy[kept]),
                }
            )
    return records


def thinned(x: Array, y: Array, limit: int) -> tuple[Array, Array]:
    """At most ``limit`` points of the smoothed curve, the first and the last among them."""
    kept = spread(len(x), limit)
    sums = np.concatenate(([0.0], np.cumsum(y)))
    reach = (SMOOTHING * kept).astype(int)
    low, high = kept - reach, np.minimum(kept + reach + 1, len(x))
    return x[kept], (sums[high] - sums[low]) / (high - low)


def spread(count: int, limit: int) -> NDArray[np.int64]:
    """At most ``limit`` of the numbers below ``count``: half of them evenly spaced, half of them
    evenly on a logarithmic axis, where a loss curve bends most."""
    if count <= limit:
        return np.arange(count)
    even = np.linspace(0, count - 1, limit - limit // 2)
    early = np.geomspace(1, count, limit // 2) - 1
    return np.unique(np.concatenate((even, early)).round().astype(np.int64))


def _series(rows: Sequence[dict[str, Any]], column: str) -> tuple[Array, Array]:
    """Tokens and ``column`` of the rows that hold finite numbers for both."""
    pairs = [
        (row["tokens"], row[column])
        for row in rows
        if _finite(row.get("tokens")) and _finite(row.get(column))
    ]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(values: Array) -> list[float]:
    """Five significant digits: more than a screen shows."""
    return [float(f"{value:.5g}") for value in values.tolist()]
