"""The fit gives back known laws, says how sure it is, and what the data cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from questtrain.errors import UserError
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.paper import PAPER_LAW
from questtrain.scaling.points import Point
from tests.scaling.synthetic import SIZES, TRUTH, grid

QUICK = FitOptions(bootstrap=0)
SHARED = ("A", "alpha", "B", "beta", "E")


def value(law: Law, name: str) -> Estimate:
    return law.eff[name] if name in law.eff else getattr(law, name)


def says(law: Law, *parts: str) -> bool:
    return any(all(part in warning for part in parts) for warning in law.warnings)


def test_exact_data_give_the_law_back():
    law = fit_law(grid(), QUICK)
    for name in (*SHARED, *TRUTH.eff):
        assert value(law, name).value == pytest.approx(value(TRUTH, name).value, rel=1e-5), name
        assert value(law, name).low is None
    assert law.rms_log_residual < 1e-8
    assert law.points == 72
    assert law.warnings == ()


def test_the_paper_s_grid_gives_the_paper_s_efficiencies():
    """104 points of 12 precisions with the noise of the published runs: table 1 comes out."""
    table_1 = {"1": 0.02, "2": 0.16, "3": 0.43, "4": 0.70, "8": 1.02}
    main = [("1", SIZES, (100,)), ("8", SIZES[:3], (100,)), ("16", SIZES, (100,))]
    main += [(p, SIZES[:4], (25, 50, 100)) for p in ("2", "3", "4")]
    main += [(p, SIZES[4:6], (100,)) for p in ("3", "4")]
    rest = [(p, SIZES[:4], (100, 50)) for p in PAPER_LAW.eff if p not in table_1]
    points = [
        point
        for seed, (p, sizes, ratios) in enumerate(main + rest)
        for point in grid(PAPER_LAW, sizes, ratios, [p], noise=0.0038, seed=seed)
    ]
    law = fit_law(points)
    for label, published in table_1.items():
        estimate = law.eff[label]
        assert estimate.value == pytest.approx(PAPER_LAW.eff[label].value, rel=0.12), label
        assert estimate.low - 0.01 < published < estimate.high + 0.01, label


def test_intervals_cover_the_truth_at_their_nominal_rate():
    """90% intervals of 60 noisy data sets: within the binomial's own spread for each number
    (60 draws of 0.9 lie in 0.78..0.99 with probability 0.998), and close to 0.9 for all."""
    hits = []
    for seed in range(60):
        law = fit_law(grid(noise=0.005, seed=seed), FitOptions(bootstrap=200, seed=seed))
        estimates = [(value(law, name), value(TRUTH, name).value) for name in (*SHARED, *TRUTH.eff)]
        hits.append([estimate.low <= truth <= estimate.high for estimate, truth in estimates])
    coverage = np.mean(hits, axis=0)
    assert ((coverage > 0.77) & (coverage <= 1.0)).all(), coverage
    assert 0.85 < coverage.mean() < 0.95


def test_intervals_widen_with_noise_and_confidence():
    def width(noise: float, confidence: float) -> float:
        options = FitOptions(bootstrap=200, confidence=confidence)
        eff = fit_law(grid(noise=noise), options).eff["4"]
        return eff.high - eff.low

    assert width(0.002, 0.9) < width(0.01, 0.9)
    assert width(0.005, 0.5) < width(0.005, 0.99)


def test_the_same_data_and_seed_give_the_same_law_in_any_order():
    points = grid(noise=0.005)
    options = FitOptions(bootstrap=50)
    law = fit_law(points, options)
    assert fit_law(points, options) == law
    turned = fit_law(points[::-1], QUICK)
    assert turned.alpha.value == pytest.approx(law.alpha.value, rel=1e-6)
    assert fit_law(points, replace(options, seed=1)).alpha != law.alpha


def test_one_ruined_run_hardly_moves_the_law_and_is_named():
    points = grid(noise=0.003)
    ruined = replace(points[20], loss=points[20].loss * 1.3, name="ruined")
    law = fit_law([*points[:20], ruined, *points[21:]], QUICK)
    clean = fit_law(points, QUICK)
    squares = fit_law([*points[:20], ruined, *points[21:]], replace(QUICK, huber_delta=10.0))
    error = abs(law.eff["4"].value - clean.eff["4"].value)
    assert error < 0.03
    assert error < abs(squares.eff["4"].value - clean.eff["4"].value) / 3
    assert says(law, "ruined", "%")


def test_chinchilla_takes_the_unquantized_runs_alone():
    law = fit_law(grid(), FitOptions(form="chinchilla", bootstrap=0))
    assert law.points == 18
    assert law.eff == {}
    assert law.alpha.value == pytest.approx(TRUTH.alpha.value, rel=1e-5)


def test_free_alpha_finds_the_alpha_of_each_precision():
    own = {"2": 0.2, "4": 0.3}
    points = grid(precisions=["16"])
    for label, alpha in own.items():
        single = replace(TRUTH, A=Estimate({"2": 60.0, "4": 300.0}[label]), alpha=Estimate(alpha))
        made = grid(single, precisions=["16"])
        points += [replace(p, precision=label) for p in made]
    law = fit_law(points, FitOptions(form="free-alpha", bootstrap=0))
    assert {k: e.value for k, e in law.alpha_of.items()} == pytest.approx(own, rel=1e-4)
    for p in points:
        assert law.loss(p.params, p.tokens, p.precision) == pytest.approx(p.loss, rel=1e-7)
    at = law.eff_at
    assert law.loss(at, 1e9, "4") == pytest.approx(
        law.loss(at * law.eff["4"].value, 1e9, "16"), rel=1e-9
    ), "eff is what it means at that size"


def test_leave_one_out_is_larger_than_the_residual_and_skips_what_nothing_else_tells():
    points = grid(noise=0.005)
    law = fit_law(points, QUICK)
    assert law.rms_log_residual < law.leave_one_out < 3 * law.rms_log_residual
    lonely = [*points, Point(1e8, 1e10, "3", 3.0, "lonely")]
    assert fit_law(lonely, QUICK).leave_one_out == pytest.approx(law.leave_one_out, rel=1e-3)


def test_a_floor_at_zero_is_said():
    no_floor = replace(TRUTH, E=Estimate(0.0), A=Estimate(20.0), alpha=Estimate(0.1))
    law = fit_law(grid(no_floor, noise=0.004, seed=1), FitOptions(bootstrap=100))
    assert says(law, "E ", "zero")
    assert law.E.low == 0.0


@pytest.mark.parametrize(
    ("points", "part"),
    [
        (grid(sizes=SIZES[:1]), "one model size only"),
        ([replace(p, tokens=1e9) for p in grid(noise=0.01)], "one token count only"),
        (grid(ratios=(100,), noise=0.001), "one ratio of tokens to parameters"),
        ([*grid(noise=0.001), Point(1e8, 1e10, "3", 3.0, "x")], "seen once only: W3A3"),
        (
            [*grid(precisions=["2", "4"], noise=0.001), *grid(noise=0.001)[3:4]],
            "one unquantized run only",
        ),
    ],
)
def test_what_the_data_cannot_determine_is_said(points, part):
    assert says(fit_law(points, QUICK), part)


@pytest.mark.parametrize(
    ("points", "options", "part"),
    [
        (grid(precisions=["2", "4"]), QUICK, "no run of the reference precision 16"),
        (grid()[:6], QUICK, "cannot determine the 8 parameters"),
        (grid(), replace(QUICK, form="chinchila"), "Did you mean 'chinchilla'?"),
        (grid(), replace(QUICK, huber_delta=0.0), "huber_delta=0.0 must be at least 1e-6"),
        (grid(), replace(QUICK, bootstrap=-1), "bootstrap=-1"),
        (grid(), replace(QUICK, confidence=1.0), "confidence=1.0 must be positive and below 1"),
    ],
)
def test_bad_input(points, options, part):
    with pytest.raises(UserError) as error:
        fit_law(points, options)
    assert part in str(error.value)
