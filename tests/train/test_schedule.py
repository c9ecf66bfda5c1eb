"""The learning rate against torch's own scheduler, and at the points quest.md names."""

import itertools
import math

import pytest
import torch

from questtrain.config import ScheduleConfig
from questtrain.train.schedule import learning_rate


@pytest.mark.parametrize(("steps", "warmup"), [(500, 0.1), (11444, 0.1), (37, 0.3)])
def test_cosine_is_the_authors_one_cycle(steps, warmup):
    """Every step equals OneCycleLR(div_factor=100, final_div_factor=0.1), the authors' choice."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup_steps = round(warmup * steps)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.2e-3,
        total_steps=steps,
        pct_start=warmup_steps / steps,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=1e2,
        final_div_factor=0.1,
    )
    schedule = ScheduleConfig(warmup_fraction=warmup)
    for step in range(steps):
        ours = learning_rate(step, steps, 1.2e-3, schedule)
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        if step < steps - 1:
            reference.step()


def test_ends_are_the_papers():
    """From LR/100 to LR at the warm-up's end to LR/10 at the last step."""
    schedule = ScheduleConfig()
    assert learning_rate(0, 1000, 1.0, schedule) == pytest.approx(0.01)
    assert learning_rate(99, 1000, 1.0, schedule) == pytest.approx(1.0)
    assert learning_rate(999, 1000, 1.0, schedule) == pytest.approx(0.1)


def test_wsd_has_a_plateau_and_a_linear_decay():
    schedule = ScheduleConfig(name="wsd", final_ratio=0.0, decay_fraction=0.2)
    rates = [learning_rate(step, 1000, 2.0, schedule) for step in range(1000)]
    assert all(rate == 2.0 for rate in rates[99:800])
    assert rates[0] == pytest.approx(0.02)
    assert rates[899] == pytest.approx(1.0)
    assert rates[999] == pytest.approx(0.0, abs=1e-12)
    steps_down = [a - b for a, b in itertools.pairwise(rates[800:])]
    assert max(steps_down) == pytest.approx(min(steps_down))


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_short_runs_stay_finite_and_positive_until_the_end(name, steps):
    schedule = ScheduleConfig(name=name)
    rates = [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]
    assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in rates)
