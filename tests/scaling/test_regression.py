"""The numbers below the fit: derivatives, bounds, and that every start ends in one place."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from questtrain.scaling import regression as regressions
from questtrain.scaling.fit import FitOptions, fit_law, leave_one_out
from questtrain.scaling.regression import E, regression, solve
from tests.scaling.synthetic import grid


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


@pytest.mark.parametrize("free_alpha", [False, True])
def test_leave_one_out_is_the_fit_of_the_other_points(free_alpha):
    """Each left-out residual equals that of a fit from all starts without the point; an outlier
    and a precision of two runs, which draw the fit to themselves, included."""
    points = grid(precisions=["16", "4"], noise=0.004)
    points += grid(sizes=[3e8], ratios=[30, 60], precisions=["2"], noise=0.004, seed=1)
    points[7] = replace(points[7], loss=1.4 * points[7].loss)
    problem = regression(points, free_alpha)
    everything = np.tile(problem.log_loss, (len(problem.starts()), 1))
    x, cost = solve(problem, problem.starts(), everything, np.ones_like(everything), 0.01)
    left_out = leave_one_out(problem, x[cost.argmin()], 0.01)
    for place in (0, 3, 7, 20, len(points) - 2, len(points) - 1):
        weight = np.ones_like(everything)
        weight[:, place] = 0.0
        others, others_cost = solve(problem, problem.starts(), everything, weight, 0.01)
        predicted = problem.predict(others[others_cost.argmin()][None])[0, place]
        if np.isfinite(left_out[place]):
            assert left_out[place] == pytest.approx(problem.log_loss[place] - predicted, abs=2e-6)
    assert np.isfinite(left_out).sum() > len(points) - 3


def test_many_problems_at_a_time_are_solved_as_one_is(monkeypatch):
    """The size of a block changes no bit."""
    problem = regression(grid(noise=0.005), False)
    log_loss = np.tile(problem.log_loss, (len(problem.starts()), 1))
    arguments = problem.starts(), log_loss, np.ones_like(log_loss), 0.01
    found = []
    for block in (1, 1000, 1 << 30):
        monkeypatch.setattr(regressions, "BLOCK", block)
        found.append(solve(problem, *arguments))
    for x, cost in found[1:]:
        assert np.array_equal(x, found[0][0])
        assert np.array_equal(cost, found[0][1])


def test_memory_grows_with_the_points_and_not_with_their_square():
    """A thousand points, with intervals: n² numbers alone would be 8 MB, and are never there."""
    ratios = np.linspace(20, 200, 56)
    points = grid(
        ratios=[float(ratio) for ratio in ratios], precisions=["16", "4", "2"], noise=0.003
    )
    tracemalloc.start()
    fit_law(points[::2], FitOptions(bootstrap=20))
    _, half = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    fit_law(points, FitOptions(bootstrap=20))
    _, whole = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(points) > 1000
    assert whole < 2.5 * half
