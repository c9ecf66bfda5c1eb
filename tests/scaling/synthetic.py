"""Points from a known law, for tests of the fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.points import Point

SIZES = (30.5e6, 49.6e6, 102.8e6, 203.2e6, 443.1e6, 822.2e6)
RATIOS = (25, 50, 100)

TRUTH = Law(
    form="quest",
    A=Estimate(400.0),
    alpha=Estimate(0.33),
    B=Estimate(1500.0),
    beta=Estimate(0.36),
    E=Estimate(1.9),
    eff={"2": Estimate(0.2), "4": Estimate(0.7), "8": Estimate(1.02)},
    rms_log_residual=0.0,
    points=0,
)


def grid(
    law: Law = TRUTH,
    sizes: Sequence[float] = SIZES,
    ratios: Sequence[float] = RATIOS,
    precisions: Sequence[str] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Point]:
    """Every size × ratio × precision, with Gaussian noise of that deviation on the log loss."""
    rng = np.random.default_rng(seed)
    return [
        Point(n, n * ratio, p, loss * float(np.exp(noise * rng.normal())), f"{n:g}-{ratio}-{p}")
        for n in sizes
        for ratio in ratios
        for p in (law.precisions if precisions is None else precisions)
        for loss in [float(law.loss(n, n * ratio, p))]
    ]
