"""The points of the law as figures need them: by precision and by tokens per parameter, their
seeds merged, with the fitted curve beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from questtrain.errors import UserError
from questtrain.scaling.figures.selection import Paths, Spread, all_runs, log, spread
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import Law
from questtrain.scaling.metric import VAL_LOSS
from questtrain.scaling.numbers import count_text
from questtrain.scaling.points import Point, law_points
from questtrain.scaling.precision import REFERENCE, label_text, weight_bits
from questtrain.scaling.runs import Run

SAME_RATIO = 1.08
"""Tokens/parameter ratios this close are one: whole batches and nominal sizes shift them."""

ROUND = tuple(m * 10.0**e for e in range(-2, 6) for m in (1, 2, 2.5, 5))
CURVE_POINTS = 60


@dataclass(frozen=True)
class Series:
    """One precision at one tokens/parameter ratio: a loss a size, and the law's curve over weight
    memory in Mbit (empty without a law)."""

    precision: str
    label: str
    tokens_per_param: float
    params: list[float]
    memory_mbit: list[float]
    loss: list[Spread]
    curve_memory_mbit: list[float]
    curve_loss: list[float]


@dataclass(frozen=True)
class LawRuns:
    """``sizes`` names each number of parameters; ``groups`` holds the points of each ratio."""

    runs: list[Run]
    points: list[Point]
    sizes: Mapping[float, str]
    groups: Mapping[float, list[Point]]


def read_law_runs(paths: Paths, metric: str = VAL_LOSS) -> LawRuns:
    """The points of a metric; UserError when no run is complete; what is left out or odd is said
    in the log."""
    runs = all_runs(paths)
    points, remarks = law_points(runs, metric)
    for remark in remarks:
        log.warning("%s", remark)
    names = {run.number("non_embedding_params"): run.model for run in runs}
    sizes = {p.params: names.get(p.params) or count_text(p.params) for p in points}
    complete = [run for run in runs if run.status == "completed"]
    return LawRuns(complete, points, sizes, ratio_groups(points))


def ratio_groups(points: Sequence[Point]) -> dict[float, list[Point]]:
    """Tokens per non-embedding parameter → its points, ascending; a ratio within 5% of a round
    number is called by that (3B tokens for 30.5M parameters are 100), else to two digits."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=_ratio):
        if groups and _ratio(point) <= SAME_RATIO * _ratio(groups[-1][-1]):
            groups[-1].append(point)
        else:
            groups.append([point])
    return {_round_ratio(_middle_ratio(group)): group for group in groups}


def fitted(points: Sequence[Point], bootstrap: bool = False) -> Law | None:
    """The law of the points, with intervals if ``bootstrap``; None, and the reason in the log,
    where they do not determine one. The same points are fitted once."""
    options = FitOptions() if bootstrap else FitOptions(bootstrap=0)
    try:
        law = fit_once(tuple(points), options)
    except UserError as error:
        log.warning("no law, so no curves: %s", error)
        return None
    for warning in law.warnings:
        log.warning("%s", warning)
    return law


def law_notes(law: Law | None) -> list[str]:
    """What a figure says below of its curves."""
    if law is None:
        return ["No curves: these runs do not determine the scaling law."]
    rms = 100 * law.rms_log_residual
    return [f"Curves: scaling law fitted to {law.points} runs, rms residual {rms:.2g}%."]


def series(group: Sequence[Point], precision: str, law: Law | None) -> Series:
    """The points of ``precision`` in a group of one ratio, and their curve a little beyond them."""
    own = [point for point in group if point.precision == precision]
    bits = weight_bits(precision)
    assert bits is not None, precision
    params = sorted({point.params for point in own})
    curve_params, curve_loss = _curve(params, _middle_ratio(group), precision, law)
    return Series(
        precision=precision,
        label=label_text(precision),
        tokens_per_param=_round_ratio(_middle_ratio(group)),
        params=params,
        memory_mbit=[size * bits / 1e6 for size in params],
        loss=[spread([p.loss for p in own if p.params == size]) for size in params],
        curve_memory_mbit=[size * bits / 1e6 for size in curve_params],
        curve_loss=curve_loss,
    )


def missing_series(
    drawn: Sequence[Series], expected: Sequence[str], sizes: Mapping[float, str]
) -> list[str]:
    """``W1A1``, where an expected precision has no run; ``W2A2 at 430M, 800M``, where it lacks
    sizes that other quantized ones have."""
    present = {size for one in drawn if one.precision != REFERENCE for size in one.params}
    by_precision = {one.precision: one for one in drawn}
    missing = []
    for precision in dict.fromkeys([*expected, *by_precision]):
        if precision not in by_precision:
            missing.append(label_text(precision))
        elif absent := sorted(present.difference(by_precision[precision].params)):
            listed = ", ".join(sizes[size] for size in absent)
            missing.append(f"{label_text(precision)} at {listed}")
    return missing


@lru_cache(maxsize=8)
def fit_once(points: tuple[Point, ...], options: FitOptions) -> Law:
    """`fit_law`, remembered: all figures of the same runs show one law."""
    return fit_law(points, options)


def _ratio(point: Point) -> float:
    return point.tokens / point.params


def _middle_ratio(group: Sequence[Point]) -> float:
    return float(np.median([_ratio(point) for point in group]))


def _round_ratio(ratio: float) -> float:
    near = min(ROUND, key=lambda value: abs(value / ratio - 1))
    return near if abs(near / ratio - 1) <= 0.05 else float(f"{ratio:.2g}")


def _curve(
    params: Sequence[float], ratio: float, precision: str, law: Law | None
) -> tuple[list[float], list[float]]:
    """Sizes from a little below the smallest to a little above the largest, and their losses."""
    if law is None or precision not in law.precisions:
        return [], []
    sizes = np.geomspace(0.85 * params[0], 1.18 * params[-1], CURVE_POINTS)
    return sizes.tolist(), law.loss(sizes, ratio * sizes, precision).tolist()
