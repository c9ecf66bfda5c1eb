"""The regression behind the law: many robust least-squares problems of one shape, side by side.

Log losses are fitted with a Huber loss by Levenberg-Marquardt steps on the analytic Jacobian. All
starting points (and all bootstrap samples) are one batch, so that NumPy does the loop: that is why
the solver is our own, 0.7 ms a bootstrap sample, where `scipy.optimize.least_squares`, which solves
one problem at a time, takes 6.9. Sizes and token counts are centred in the logarithm: otherwise A
and α would be one direction, not two.

Parameters of a problem, in this order: ``ln A`` and α, ``ln B`` and β, E, then ``ln eff`` of each
precision, and in the form ``free-alpha`` the α of each. Shape legend: B batch, n points, p
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from questtrain.scaling.points import Point
from questtrain.scaling.precision import REFERENCE, sorted_labels

Array: TypeAlias = NDArray[np.float64]

SHARED = 5
"""Parameters that all precisions share: ln A, α, ln B, β, E."""
LN_A, ALPHA, LN_B, BETA, E = range(SHARED)

EXPONENTS = (1e-3, 4.0)
LN_EFF = (-40.0, 10.0)
MAX_STEPS = 500
TOLERANCE = 1e-11
"""A problem is solved when a step changes its cost by less than this share."""

FAR, NEAR = 1e-2, 1e-6
"""Dampings to begin with."""

BLOCK = 1 << 15
"""Residuals in work at a time: few enough for a processor's cache to hold all that is made of
them."""


@dataclass(frozen=True)
class Regression:
    """The points as arrays, logarithms centred at ``ln_size`` and ``ln_data``."""

    labels: tuple[str, ...]
    group: NDArray[np.int64]  # [n] index into labels, -1 for the reference
    size: Array  # [n] ln N - ln_size
    data: Array  # [n] ln D - ln_data
    log_loss: Array  # [n]
    ln_size: float
    ln_data: float
    free_alpha: bool

    @property
    def parameters(self) -> int:
        """How many numbers the law is fitted with."""
        return SHARED + len(self.labels) * (2 if self.free_alpha else 1)

    def predict(self, x_Bp: Array) -> Array:
        """Log losses [B, n] as a log-sum-exp: log(e^u + e^v + E) with u = ln A - α·(ln N + ln eff)
        and v = ln B - β·ln D."""
        u, v = self._terms(x_Bp)
        with np.errstate(divide="ignore"):
            floor = np.log(x_Bp[:, E, None])
        predicted: Array = np.logaddexp(np.logaddexp(u, v), floor)
        return predicted

    def jacobian(self, x_Bp: Array) -> Array:
        """d log loss / d parameter, [B, n, p]."""
        u, v = self._terms(x_Bp)
        total = self.predict(x_Bp)
        share_u, share_v = np.exp(u - total), np.exp(v - total)
        J = np.zeros((*total.shape, self.parameters))
        J[..., LN_A], J[..., LN_B] = share_u, share_v
        J[..., BETA] = -share_v * self.data
        J[..., E] = np.exp(-total)
        rows = np.flatnonzero(self.group >= 0)
        columns = SHARED + self.group[rows]
        alpha, ln_eff = x_Bp[:, ALPHA, None], self._ln_eff(x_Bp)
        J[:, rows, columns] = -share_u[:, rows] * alpha
        if self.free_alpha:
            J[..., ALPHA] = -share_u * np.where(self.group >= 0, ln_eff, self.size)
            J[:, rows, columns + len(self.labels)] = -share_u[:, rows] * self.size[rows]
        else:
            J[..., ALPHA] = -share_u * (self.size + ln_eff)
        return J

    def bounds(self) -> tuple[Array, Array]:
        """The lowest and highest value of each parameter, [p] each."""
        low = np.full(self.parameters, LN_EFF[0])
        high = np.full(self.parameters, LN_EFF[1])
        exponents = [ALPHA, BETA, *range(SHARED + len(self.labels), self.parameters)]
        low[exponents], high[exponents] = EXPONENTS
        low[E], high[E] = 0.0, np.exp(self.log_loss.min())
        return low, high

    def starts(self) -> Array:
        """A grid of starting points [B, p]: exponents, floors, and how A and B share the rest."""
        loss, smallest = np.exp(self.log_loss.mean()), np.exp(self.log_loss.min())
        rows = []
        for alpha, beta, floor, share in product(
            (0.1, 0.3, 0.7), (0.1, 0.3, 0.7), (0.0, 0.4, 0.8), (0.2, 0.7)
        ):
            rest = loss - floor * smallest
            x = np.full(self.parameters, -1.0)
            x[SHARED + len(self.labels) :] = alpha
            x[:SHARED] = (
                np.log(share * rest),
                alpha,
                np.log((1 - share) * rest),
                beta,
                floor * smallest,
            )
            rows.append(x)
        return np.array(rows)

    def _terms(self, x_Bp: Array) -> tuple[Array, Array]:
        alpha = x_Bp[:, ALPHA, None]
        if self.free_alpha:
            own = np.concatenate([x_Bp[:, SHARED + len(self.labels) :], x_Bp[:, [ALPHA]]], axis=1)
            slope = own[:, self.group]
        else:
            slope = alpha
        u = x_Bp[:, LN_A, None] - slope * self.size - alpha * self._ln_eff(x_Bp)
        v = x_Bp[:, LN_B, None] - x_Bp[:, BETA, None] * self.data
        return u, v

    def _ln_eff(self, x_Bp: Array) -> Array:
        """[B, n]; the reference's 0 stands behind the labels', where index -1 finds it."""
        known = x_Bp[:, SHARED : SHARED + len(self.labels)]
        padded = np.concatenate([known, np.zeros((len(x_Bp), 1))], axis=1)
        ln_eff: Array = padded[:, self.group]
        return ln_eff


def regression(points: Sequence[Point], free_alpha: bool) -> Regression:
    """The regression of these points, whose precisions include the reference."""
    labels = sorted_labels(p.precision for p in points if p.precision != REFERENCE)
    groups = [-1 if p.precision == REFERENCE else labels.index(p.precision) for p in points]
    size = np.log([p.params for p in points])
    data = np.log([p.tokens for p in points])
    return Regression(
        labels=tuple(labels),
        group=np.array(groups),
        size=size - size.mean(),
        data=data - data.mean(),
        log_loss=np.log([p.loss for p in points]),
        ln_size=float(size.mean()),
        ln_data=float(data.mean()),
        free_alpha=free_alpha,
    )


def solve(
    problem: Regression,
    x_Bp: Array,
    log_loss_Bn: Array,
    weight_Bn: Array,
    huber_delta: float,
    damping: float = FAR,
) -> tuple[Array, Array]:
    """Minimise Σ weight·Huber(prediction - log loss) from each start; solutions [B, p], costs [B].

    Levenberg-Marquardt, one damping a problem; steps are clipped to the bounds, and a parameter
    that stands at one and is pushed beyond it is left out of the step. ``damping`` is the first
    one: `FAR`, or `NEAR` for starts close to the solution. A few problems at a time: memory does
    not grow with their number.
    """
    solved = [
        _solve(problem, x_Bp[block], log_loss_Bn[block], weight_Bn[block], huber_delta, damping)
        for block in blocks(len(x_Bp), log_loss_Bn.shape[1])
    ]
    return np.concatenate([x for x, _ in solved]), np.concatenate([cost for _, cost in solved])


def blocks(problems: int, points: int) -> list[slice]:
    """Slices of that many problems, each of about `BLOCK` residuals."""
    size = max(1, BLOCK // points)
    return [slice(start, start + size) for start in range(0, problems, size)]


def _solve(
    problem: Regression,
    x_Bp: Array,
    log_loss_Bn: Array,
    weight_Bn: Array,
    huber_delta: float,
    first_damping: float,
) -> tuple[Array, Array]:
    low, high = problem.bounds()
    x = np.clip(x_Bp, low, high)
    predicted = problem.predict(x)
    cost = _cost(predicted - log_loss_Bn, weight_Bn, huber_delta)
    damping = np.full(len(x), first_damping)
    active = np.arange(len(x))
    for _ in range(MAX_STEPS):
        here, log_loss, weight = x[active], log_loss_Bn[active], weight_Bn[active]
        residual = predicted[active] - log_loss
        step = _step(problem, here, residual, weight, huber_delta, damping[active])
        tried = np.clip(here + step, low, high)
        new = problem.predict(tried)
        new_cost = _cost(new - log_loss, weight, huber_delta)
        better = new_cost < cost[active]
        gain = (cost[active] - new_cost) / np.maximum(cost[active], 1e-300)
        moved = active[better]
        x[moved], cost[moved], predicted[moved] = tried[better], new_cost[better], new[better]
        damping[active] *= np.where(better, 0.3, 4.0)
        done = (np.abs(gain) < TOLERANCE) | (damping[active] > 1e10)
        active = active[~done]
        if not len(active):
            break
    return x, cost


def _step(
    problem: Regression,
    x: Array,
    residual: Array,
    weight: Array,
    huber_delta: float,
    damping: Array,
) -> Array:
    """The damped Gauss-Newton step [B, p]; the Huber loss reweights the residuals."""
    low, high = problem.bounds()
    scale = weight * np.minimum(1.0, huber_delta / np.maximum(np.abs(residual), 1e-300))
    J = problem.jacobian(x)
    gradient = np.einsum("bnp,bn->bp", J, scale * residual)
    stuck = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
    J = np.where(stuck[:, None, :], 0.0, J)
    gradient = np.where(stuck, 0.0, gradient)
    hessian = np.matmul(J.transpose(0, 2, 1) * scale[:, None, :], J)
    diagonal = np.einsum("bpp->bp", hessian)  # a view: what is added here is added to hessian
    diagonal += damping[:, None] * np.maximum(diagonal, 1e-12) + 1e-14
    step: Array = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return step


def without_each(problem: Regression, x: Array, huber_delta: float) -> Array:
    """Where one Gauss-Newton step leads from the solution ``x`` [p] when a point is left out, for
    each point [n, p]: close to the others' solution."""
    low, high = problem.bounds()
    residual = problem.predict(x[None])[0] - problem.log_loss
    scale = np.minimum(1.0, huber_delta / np.maximum(np.abs(residual), 1e-300))
    J = np.where((x <= low) | (x >= high), 0.0, problem.jacobian(x[None])[0])
    own = J * scale[:, None]
    gradient = own.T @ residual - own * residual[:, None]
    hessian = own.T @ J - own[:, :, None] * J[:, None, :]
    diagonal = np.einsum("npp->np", hessian)  # a view
    diagonal += NEAR * np.maximum(diagonal, 1e-12) + 1e-14
    starts: Array = x - np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return np.clip(starts, low, high)


def _cost(residual: Array, weight: Array, huber_delta: float) -> Array:
    """Σ weight·Huber over the points, [B]."""
    cost: Array = (weight * huber(residual, huber_delta)).sum(axis=-1)
    return cost


def huber(residual: Array, delta: float) -> Array:
    """The loss of each residual: r²/2 up to ``delta``, linear beyond."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    loss: Array = inside * (size - 0.5 * inside)
    return loss
