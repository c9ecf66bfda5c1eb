"""What the data cannot tell: warnings about a fitted law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from questtrain.scaling.points import Point
from questtrain.scaling.precision import REFERENCE, label_text
from questtrain.scaling.regression import SHARED, Array, E, Regression

SAME = 0.05
"""Sizes, token counts or their ratios that are neighbours within 5% are the same."""

UNDETERMINED = 1e-7
"""A direction of parameters whose effect is this much smaller than the largest is undetermined."""

OUTLIER = 5.0
"""A point is named when it lies this many (robust) standard deviations off the others' law."""


def leverages(problem: Regression, x: Array) -> Array:
    """How far each point draws the fit to itself, [n] in 0..1; a point of its own precision: 1."""
    J = problem.jacobian(x[None])[0]
    free = np.flatnonzero(~_at_a_bound(problem, x))
    U, scale, _ = np.linalg.svd(J[:, free], full_matrices=False)
    share: Array = (U[:, scale > UNDETERMINED * scale[0]] ** 2).sum(axis=1)
    return np.minimum(share, 1.0)


def warnings_of(
    problem: Regression, points: Sequence[Point], x: Array, samples: Array | None, left_out: Array
) -> list[str]:
    """One sentence a finding, the gravest first."""
    return [
        *_bounds(problem, x),
        *_sizes(points),
        *_ratios(points),
        *_seldom(points),
        *_directions(problem, x),
        *_floor(x, samples),
        *_outliers(points, left_out),
    ]


def _at_a_bound(problem: Regression, x: Array) -> NDArray[np.bool_]:
    low, high = problem.bounds()
    at_bound: NDArray[np.bool_] = (x <= low) | (x >= high)
    return at_bound


def _bounds(problem: Regression, x: Array) -> list[str]:
    names = _names(problem)
    return [
        f"{names[i]} stands at the edge of what it may be; the data do not determine it"
        for i in np.flatnonzero(_at_a_bound(problem, x))
        if i != E
    ]


def _floor(x: Array, samples: Array | None) -> list[str]:
    if x[E] <= 0:
        return ["E is at its lower bound, zero: the data show no floor of the loss"]
    if samples is not None and (samples[:, E] <= 0).mean() > 0.05:
        return ["E may be zero: more than 5% of the bootstrap samples put it there"]
    return []


def _sizes(points: Sequence[Point]) -> list[str]:
    if _distinct([p.params for p in points]) == 1:
        return ["one model size only: α, A and every eff are not determined"]
    return []


def _ratios(points: Sequence[Point]) -> list[str]:
    if _distinct([p.tokens for p in points]) == 1:
        return ["one token count only: β, B and E are not determined"]
    if _distinct([p.tokens / p.params for p in points]) == 1:
        return ["one ratio of tokens to parameters only: α and β can hardly be told apart"]
    return []


def _distinct(values: Sequence[float]) -> int:
    ordered = np.sort(np.log(values))
    return 1 + int((np.diff(ordered) > SAME).sum())


def _seldom(points: Sequence[Point]) -> list[str]:
    counts = Counter(p.precision for p in points)
    once = [label_text(label) for label, count in counts.items() if count == 1]
    once_only = [f"seen once only: {', '.join(once)}; no run checks that eff"] if once else []
    if counts[REFERENCE] == 1:
        return ["one unquantized run only: every eff rests on its loss"]
    return once_only


def _directions(problem: Regression, x: Array) -> list[str]:
    """Combinations of parameters that change no prediction."""
    J = problem.jacobian(x[None])[0]
    free = np.flatnonzero(~_at_a_bound(problem, x))
    norms = np.linalg.norm(J[:, free], axis=0)
    _, scale, directions = np.linalg.svd(J[:, free] / np.maximum(norms, 1e-300))
    scale = np.concatenate([scale, np.zeros(len(free) - len(scale))])
    loose = directions[scale < UNDETERMINED * scale[0]]
    if not len(loose):
        return []
    names = _names(problem)
    involved = [names[free[i]] for i in np.flatnonzero((np.abs(loose) > 0.1).any(axis=0))]
    return [f"not determined by these data: {', '.join(involved)}"]


def _outliers(points: Sequence[Point], left_out: Array) -> list[str]:
    known = left_out[np.isfinite(left_out)]
    if len(known) < SHARED:
        return []
    spread = 1.4826 * float(np.median(np.abs(known)))
    return [
        f"{point.name} lies {residual:+.1%} off the law of all others"
        for point, residual in zip(points, left_out, strict=True)
        if spread and abs(residual) > OUTLIER * spread
    ]


def _names(problem: Regression) -> list[str]:
    labels = [label_text(label) for label in problem.labels]
    names = ["A", "α", "B", "β", "E", *(f"eff({label})" for label in labels)]
    return names + [f"α({label})" for label in labels] * problem.free_alpha
