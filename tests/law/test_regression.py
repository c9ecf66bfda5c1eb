"""The numbers below the fit: derivatives, bounds, and that every start ends in one place."""

import numpy as np
import pytest

from questtrain.scaling.regression import E, regression, solve
from tests.law.synthetic import grid


@pytest.mark.parametrize("free_alpha", [False, True])
def test_the_jacobian_is_that_of_finite_differences(free_alpha):
    problem = regression(grid(noise=0.01), free_alpha)
    x = problem.starts()[7:8] + 0.01 * np.arange(problem.parameters)
    h = 1e-6 * np.eye(problem.parameters)
    numeric = (problem.predict(x + h) - problem.predict(x - h)).T / 2e-6
    assert problem.jacobian(x)[0] == pytest.approx(numeric, abs=1e-8)


def test_a_floor_of_zero_has_finite_predictions_and_derivatives():
    problem = regression(grid(), False)
    x = problem.starts()[:1].copy()
    x[0, E] = 0.0
    assert np.isfinite(problem.predict(x)).all()
    assert np.isfinite(problem.jacobian(x)).all()
    x[0, E] = 1e-12
    assert problem.jacobian(x)[0, :, E] == pytest.approx(np.exp(-problem.predict(x)[0]))


def test_extreme_parameters_do_not_overflow():
    """Log-sum-exp: terms of e^±700 are no problem."""
    problem = regression(grid(), False)
    x = problem.starts()[:1].copy()
    x[0, :4] = 700.0, 4.0, -700.0, 4.0
    assert np.isfinite(problem.predict(x)).all()
    assert np.isfinite(problem.jacobian(x)).all()


@pytest.mark.parametrize("free_alpha", [False, True])
def test_every_start_ends_at_the_same_cost(free_alpha):
    problem = regression(grid(noise=0.005), free_alpha)
    starts = problem.starts()
    log_loss = np.tile(problem.log_loss, (len(starts), 1))
    x, cost = solve(problem, starts, log_loss, np.ones_like(log_loss), 0.01)
    assert len(starts) >= 50
    assert cost == pytest.approx(np.full(len(starts), cost.min()), rel=1e-4)
    low, high = problem.bounds()
    assert ((low <= x) & (x <= high)).all()


def test_the_solution_is_a_stationary_point_that_a_general_optimiser_agrees_with():
    """scipy's trust-region solver, from our solution and from afar, finds nothing better."""
    from scipy.optimize import least_squares

    problem = regression(grid(noise=0.005, seed=3), False)
    start = problem.starts()[:1]
    x, cost = solve(problem, start, problem.log_loss[None], np.ones((1, len(problem.size))), 0.01)
    for begin in (x[0], start[0]):
        theirs = least_squares(
            lambda p: problem.predict(p[None])[0] - problem.log_loss,
            begin,
            lambda p: problem.jacobian(p[None])[0],
            bounds=problem.bounds(),
            loss="huber",
            f_scale=0.01,
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-12,
            max_nfev=5000,
        )
        assert cost[0] <= theirs.cost * (1 + 1e-6)


def test_weights_of_zero_take_points_out():
    points = grid(noise=0.005)
    problem, without = regression(points, False), regression(points[1:], False)
    weight = np.ones((1, len(points)))
    weight[0, 0] = 0
    _, cost = solve(problem, problem.starts()[:1], problem.log_loss[None], weight, 0.01)
    ones = np.ones((1, len(points) - 1))
    _, other = solve(without, without.starts()[:1], without.log_loss[None], ones, 0.01)
    assert cost == pytest.approx(other, rel=1e-6)
