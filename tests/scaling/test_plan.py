"""Plans against brute force, and figure 14's curves."""

from dataclasses import replace

import numpy as np
import pytest

from questtrain.errors import UserError
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import Estimate
from questtrain.scaling.paper import PAPER_LAW
from questtrain.scaling.plan import Budget, extrapolation, iso_memory, plan
from questtrain.scaling.precision import weight_bits
from tests.scaling.synthetic import TRUTH, grid

FREE_ALPHA = replace(
    TRUTH,
    form="free-alpha",
    eff_at=1e8,
    alpha_of={"2": Estimate(0.25), "4": Estimate(0.3), "8": Estimate(0.35)},
)


def by_brute_force(law, label, budget):
    """The lowest loss over a fine grid of sizes."""
    sizes = np.geomspace(1e5, 1e13, 400_001)
    if budget.memory_bytes is not None:
        sizes = sizes[sizes <= 8 * budget.memory_bytes / weight_bits(label)]
    tokens = np.full_like(sizes, np.inf if budget.tokens is None else budget.tokens)
    if budget.flops is not None:
        tokens = np.minimum(tokens, budget.flops / (6 * sizes))
    losses = law.loss(sizes, tokens, label)
    return losses.min()


@pytest.mark.parametrize("law", [TRUTH, PAPER_LAW, FREE_ALPHA], ids=lambda law: law.form)
@pytest.mark.parametrize(
    "budget",
    [
        Budget(memory_bytes=1.6e9, tokens=80e9),
        Budget(memory_bytes=1.6e9, flops=1e20),
        Budget(memory_bytes=1e7, flops=1e20),
        Budget(flops=1e19),
        Budget(flops=1e21, tokens=1e9),
        Budget(memory_bytes=1e8, tokens=2e10, flops=3e18),
    ],
    ids=str,
)
def test_the_best_size_is_that_of_a_search(law, budget):
    for choice in plan(law, budget):
        best = by_brute_force(law, choice.precision, budget)
        assert choice.loss <= best * (1 + 1e-9)
        assert choice.loss == pytest.approx(best, rel=1e-3)
        assert choice.memory_bytes <= (budget.memory_bytes or np.inf) * (1 + 1e-9)
        assert choice.tokens <= (budget.tokens or np.inf) * (1 + 1e-9)
        assert choice.flops <= (budget.flops or np.inf) * (1 + 1e-9)


def test_the_lowest_loss_comes_first():
    choices = plan(PAPER_LAW, Budget(memory_bytes=1.6e9, tokens=80e9), ["1", "2", "4", "8", "16"])
    assert [c.precision for c in choices] == ["4", "8", "2", "16", "1"]
    assert choices[0].params == pytest.approx(3.2e9)
    assert choices[0].best_share is None


def test_samples_give_intervals_and_a_share_of_wins():
    law = fit_law(grid(noise=0.005), FitOptions(bootstrap=200))
    choices = plan(law, Budget(memory_bytes=1e8, tokens=1e10))
    assert sum(choice.best_share for choice in choices) == pytest.approx(1.0)
    for choice in choices:
        assert choice.low < choice.loss < choice.high
    assert choices[0].best_share > 0.5
    unknown_bits = replace(law, eff={**law.eff, "mine": Estimate(0.5)})
    assert "mine" not in [c.precision for c in plan(unknown_bits, Budget(flops=1e18))]


def test_figure_14_compares_equal_memory_and_equal_compute():
    curves = iso_memory(PAPER_LAW, 1.6e9, [10, 1000])
    assert curves["16"] == pytest.approx(list(PAPER_LAW.loss(8e8, np.array([8e9, 8e11]), "16")))
    assert curves["4"] == pytest.approx(list(PAPER_LAW.loss(3.2e9, np.array([2e9, 2e11]), "4")))
    assert curves["8"][0] < min(curves["4"][0], curves["16"][0]), "few tokens: 8 bits"
    assert curves["4"][1] < curves["8"][1], "many tokens: 4 bits, as in the paper"


def test_beyond_the_data_is_said():
    (choice,) = plan(PAPER_LAW, Budget(memory_bytes=1.6e9, tokens=1e9), ["16"])
    assert extrapolation(PAPER_LAW, choice) is None
    (choice,) = plan(PAPER_LAW, Budget(memory_bytes=16e9, tokens=8e11), ["16"])
    remark = extrapolation(PAPER_LAW, choice)
    assert (
        remark
        == "9.73 times the most parameters of its data and 10 times the most tokens of its data"
    )
    (choice,) = plan(PAPER_LAW, Budget(memory_bytes=6e6, tokens=1e9), ["16"])
    assert "times the fewest parameters" in extrapolation(PAPER_LAW, choice)
    assert extrapolation(TRUTH, choice) is None, "a law that does not know its data"


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        (Budget(), "give memory=… and tokens=…"),
        (Budget(memory_bytes=1e9), "give memory=… and tokens=…"),
        (Budget(tokens=1e9), "give memory=… and tokens=…"),
        (Budget(memory_bytes=-1.0, tokens=1e9), "memory=-1.0 must be a positive number"),
        (Budget(flops=float("inf")), "flops=inf"),
        (Budget(flops=0.0), "flops=0.0"),
    ],
)
def test_bad_budgets(budget, part):
    with pytest.raises(UserError) as error:
        plan(TRUTH, budget)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("asked", "label"),
    [("w4a4", "4"), ("W4A4", "4"), ("4", "4"), ("bf16", "16"), ("w16a16", "16"), ("fp4", "fp4"),
     ("wfp4afp4", "fp4"), ("w4a16", "w4a16"), ("w1a1", "1"), ("w4s24a4", "w4s24a4")],
)  # fmt: skip
def test_a_precision_may_be_spelled_as_in_training(asked, label):
    (choice,) = plan(PAPER_LAW, Budget(flops=1e20), [asked])
    assert choice.precision == label


@pytest.mark.parametrize(
    ("asked", "close"),
    [("w5a4", "4"), ("w4a5", "4"), ("7", "8"), ("w3a3-lsq", "3"), ("w2s24a4", "w4s24a4"),
     ("w4a7", "4"), ("w7a8", "8")],
)  # fmt: skip
def test_the_nearest_precision_is_nearest_by_its_bits(asked, close):
    with pytest.raises(UserError, match=f"precision of this law '{asked}'.* mean '{close}'"):
        plan(PAPER_LAW, Budget(flops=1e20), [asked])


def test_an_unknown_precision():
    with pytest.raises(UserError, match="unknown precision of this law '5'"):
        plan(TRUTH, Budget(flops=1e20), ["5"])
