"""Fitting the law: a Huber loss on log-loss residuals, many starts, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from questtrain.config.ranges import SEED, Choices, Interval, Text, check_fields
from questtrain.errors import UserError
from questtrain.scaling.checks import leverages, warnings_of
from questtrain.scaling.law import FORMS, Estimate, Law
from questtrain.scaling.metric import VAL_LOSS
from questtrain.scaling.points import Point
from questtrain.scaling.precision import REFERENCE
from questtrain.scaling.regression import (
    ALPHA,
    BETA,
    LN_A,
    LN_B,
    NEAR,
    SHARED,
    TOLERANCE,
    Array,
    E,
    Regression,
    blocks,
    huber,
    regression,
    solve,
    without_each,
)

LEVERAGE_LIMIT = 0.99
"""A point that the fit follows this closely has no residual to learn the noise from."""


KEPT_DRAWS = 200
"""Bootstrap samples that go into the law's record, for intervals of predictions."""


@dataclass(frozen=True)
class FitOptions:
    """How to fit. The Huber loss is quadratic up to residuals of ``huber_delta``; its default is
    about two standard deviations of a clean run's noise. ``bootstrap`` samples, drawn by ``seed``,
    give intervals of probability ``confidence``; 0 gives none.
    """

    form: Annotated[
        str,
        Choices(FORMS),
        "chinchilla: unquantized runs alone; free-alpha: an α for each precision",
    ] = "quest"
    huber_delta: Annotated[
        float, Interval("[1e-6, 1e6]"), "residuals of the log loss beyond it count linearly"
    ] = 0.01
    seed: Annotated[int, Interval(SEED), "of the samples"] = 0
    bootstrap: Annotated[int, Interval("[0, 1e5]"), "samples for the intervals; 0 gives none"] = (
        1000
    )
    confidence: Annotated[float, Interval("(0, 1)"), "of the intervals"] = 0.9
    metric: Annotated[
        str, Text(), "the column of the runs that is fitted: val_loss, train_loss, bpb.NAME, …"
    ] = VAL_LOSS


def fit_law(points: Sequence[Point], options: FitOptions = FitOptions()) -> Law:
    """The law of these points, whose losses are the column ``options.metric``; deterministic.

    ``chinchilla`` takes the unquantized points alone. UserError: options that cannot be, no point
    of the reference precision, fewer points than the law has parameters.
    """
    check_fields(options)
    if options.form == "chinchilla":
        points = [p for p in points if p.precision == REFERENCE]
    problem = regression(points, free_alpha=options.form == "free-alpha")
    _check_points(points, problem)
    x = _best(problem, options.huber_delta)
    samples = _bootstrap(problem, x, options) if options.bootstrap else None
    residual = problem.log_loss - problem.predict(x[None])[0]
    left_out = leave_one_out(problem, x, options.huber_delta)
    judged = left_out[np.isfinite(left_out)]
    return Law(
        form=options.form,
        **_estimates(problem, x, samples, options.confidence),
        rms_log_residual=_rms(residual),
        points=len(points),
        confidence=options.confidence if options.bootstrap else None,
        leave_one_out=_rms(judged) if len(judged) else None,
        eff_at=float(np.exp(problem.ln_size)) if problem.free_alpha else None,
        params_range=_range([p.params for p in points]),
        tokens_range=_range([p.tokens for p in points]),
        metric=options.metric,
        warnings=tuple(warnings_of(problem, points, x, samples, left_out)),
    )


def _check_points(points: Sequence[Point], problem: Regression) -> None:
    if not any(p.precision == REFERENCE for p in points):
        known = ", ".join(problem.labels) or "none"
        raise UserError(
            f"no run of the reference precision 16 (bits=bf16), whose eff is 1: the runs have"
            f" {known}. Add unquantized runs, or label them 16."
        )
    if len(points) < problem.parameters:
        raise UserError(
            f"{len(points)} points cannot determine the {problem.parameters} parameters of this"
            f" law (A, α, B, β, E{', and for each precision ' if problem.labels else ''}"
            f"{'an eff' if problem.labels else ''}{' and an α' if problem.free_alpha else ''})."
        )


def _best(problem: Regression, huber_delta: float) -> Array:
    """The solution of lowest cost over all starts, [p]."""
    starts = problem.starts()
    log_loss = np.tile(problem.log_loss, (len(starts), 1))
    x, cost = solve(problem, starts, log_loss, np.ones_like(log_loss), huber_delta)
    best: Array = x[cost.argmin()]
    return best


def _bootstrap(problem: Regression, x: Array, options: FitOptions) -> Array:
    """Solutions [bootstrap, p] of resampled data: the law's prediction plus residuals drawn from
    those of the fit, each enlarged by what its leverage took from it."""
    predicted = problem.predict(x[None])[0]
    leverage = leverages(problem, x)
    free = leverage < LEVERAGE_LIMIT
    pool = (problem.log_loss - predicted)[free] / np.sqrt(1 - leverage[free])
    if not len(pool):
        raise UserError("every point is needed to determine the law: no intervals; bootstrap=0.")
    draws = np.random.default_rng(options.seed).choice(
        pool - pool.mean(), size=(options.bootstrap, len(predicted))
    )
    log_loss = predicted + draws
    starts = np.tile(x, (options.bootstrap, 1))
    return solve(problem, starts, log_loss, np.ones_like(log_loss), options.huber_delta, NEAR)[0]


def leave_one_out(problem: Regression, x: Array, huber_delta: float) -> Array:
    """Log loss of each point minus its prediction by the law of all others, [n]; nan where the
    others cannot predict it (a precision seen once)."""
    n = len(problem.log_loss)
    starts, left_out = without_each(problem, x, huber_delta), np.empty(n)
    lost = huber(problem.log_loss - problem.predict(x[None])[0], huber_delta)
    for block in blocks(n, n):  # never all n² weights at a time
        points = np.arange(n)[block]
        rows = np.arange(len(points))
        weight = np.ones((len(points), n))
        weight[rows, points] = 0.0
        log_loss = np.tile(problem.log_loss, (len(points), 1))
        solutions, cost = solve(problem, starts[block], log_loss, weight, huber_delta, NEAR)
        worse = cost > (1 + TOLERANCE) * (weight @ lost)  # than x: the step was too far
        if worse.any():
            again = np.tile(x, (worse.sum(), 1))
            solutions[worse] = solve(problem, again, log_loss[worse], weight[worse], huber_delta)[0]
        left_out[block] = problem.log_loss[block] - problem.predict(solutions)[rows, points]
    return np.where(leverages(problem, x) < LEVERAGE_LIMIT, left_out, np.nan)


def _estimates(
    problem: Regression, x: Array, samples: Array | None, confidence: float
) -> dict[str, Any]:
    """The fields of `Law` that are fitted, in units of single parameters and tokens."""
    rows = x[None] if samples is None else np.vstack([x, samples])
    columns = _columns(problem, rows)
    tail = (1 - confidence) / 2

    def estimate(name: str) -> Estimate:
        value, draws = float(columns[name][0]), columns[name][1:]
        if not len(draws):
            return Estimate(value)
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))

    return {
        **{name: estimate(name) for name in ("A", "alpha", "B", "beta", "E")},
        "eff": {label: estimate(f"eff {label}") for label in problem.labels},
        "alpha_of": {
            label: estimate(f"alpha {label}") for label in problem.labels if problem.free_alpha
        },
        "draws": {
            name: tuple(float(f"{draw:.6g}") for draw in column[1 : 1 + KEPT_DRAWS])
            for name, column in columns.items()
            if len(column) > 1
        },
    }


def _columns(problem: Regression, rows: Array) -> dict[str, Array]:
    """Each fitted number by name, a value for each of ``rows`` [R, p]."""
    labels = problem.labels
    columns = {
        "A": np.exp(rows[:, LN_A] + rows[:, ALPHA] * problem.ln_size),
        "alpha": rows[:, ALPHA],
        "B": np.exp(rows[:, LN_B] + rows[:, BETA] * problem.ln_data),
        "beta": rows[:, BETA],
        "E": rows[:, E],
    }
    columns |= {f"eff {label}": np.exp(rows[:, SHARED + k]) for k, label in enumerate(labels)}
    if problem.free_alpha:
        own = rows[:, SHARED + len(labels) :]
        columns |= {f"alpha {label}": own[:, k] for k, label in enumerate(labels)}
    return columns


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _rms(residual: Array) -> float:
    return float(np.sqrt(np.mean(residual**2)))
