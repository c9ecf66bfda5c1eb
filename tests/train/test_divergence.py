"""What counts as trouble: NaN, infinity, and losses that rise out of their usual spread."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from questtrain.cli.main import main
from questtrain.config import LoggerConfig, LoopConfig
from questtrain.data import Loader, open_dataset
from questtrain.data.permutation import permute
from questtrain.errors import UserError
from questtrain.store.rollbacks import (
    FILE,
    Rollback,
    read_rollbacks,
    skipped_batches,
    write_rollbacks,
)
from questtrain.train.divergence import MOST_NOTED, LossWatch, spike_limit
from questtrain.train.metrics import Metrics
from tests.training_data import TINY, rows

USUAL = [3.0, 3.1, 2.9, 3.05, 2.95, 3.0, 3.2, 2.8]


def watch(losses=(), **settings) -> LossWatch:
    config = LoopConfig(**{"on_divergence": "rollback", "spike_window": 8, **settings})
    watching = LossWatch(config)
    for loss in losses:
        watching.note(torch.tensor(loss), torch.tensor(1.0))
    return watching


def test_the_limit_is_robust_and_not_too_near():
    """The distances from 3.0 are 0, 0, .05, .05, .1, .1, .2, .2; one outlier moves it little."""
    usual, limit = spike_limit(USUAL, 10.0)
    assert (usual, limit) == (3.0, pytest.approx(3.0 + 10 * 1.4826 * 0.075))
    assert spike_limit([*USUAL, 90.0], 10.0)[1] == pytest.approx(3.0 + 10 * 1.4826 * 0.1)
    assert spike_limit([2.0] * 8, 10.0) == (2.0, pytest.approx(2.2))


@pytest.mark.parametrize(
    ("loss", "settings", "found"),
    [
        (4.2, {}, True),
        (4.1, {}, False),
        (4.1, {"spike_deviations": 9.0}, True),
        (1e9, {"spike_deviations": None}, False),
        (1e9, {"spike_window": 9}, False),
        (1e9, {"on_divergence": "stop"}, False),
        (0.1, {}, False),
        (math.nan, {"on_divergence": "stop"}, True),
        (math.inf, {"spike_deviations": None}, True),
    ],
)
def test_which_losses_are_trouble(loss, settings, found):
    watching = watch([*USUAL, loss, 3.0], **settings)
    trouble = watching.look(20)
    assert (trouble is not None) == found
    if trouble is not None:
        assert trouble.step == 18
        assert "at step 19" in trouble.what
    assert watching.look(20) is None, "looked at once"


def test_a_gradient_that_overflows_is_trouble():
    watching = watch(USUAL)
    watching.note(torch.tensor(3.0), torch.tensor(math.inf))
    trouble = watching.look(9)
    assert trouble is not None
    assert trouble.step == 8


def test_the_losses_before_are_those_of_the_window():
    """Kept by a checkpoint, to the last bit; a new phase has none."""
    watching = watch([7.0, 7.0, *np.float32(USUAL).tolist()])
    assert watching.look(10) is None
    assert watching.losses.tolist() == np.float32(USUAL).tolist()
    other = watch()
    other.begin_anew(watching.losses.tolist())
    other.note(torch.tensor(4.2), torch.tensor(1.0))
    assert other.look(11).step == 10
    watching.begin_anew()
    watching.note(torch.tensor(1e9), torch.tensor(1.0))
    assert watching.look(11) is None
    assert watch(spike_deviations=None).losses is None


def test_what_is_noted_does_not_grow_without_end():
    watching = watch([3.0] * (MOST_NOTED - 1))
    assert not watching.is_full
    watching.note(torch.tensor(3.0), torch.tensor(1.0))
    assert watching.is_full
    assert watching.look(MOST_NOTED) is None
    assert not watching.is_full


def test_the_record_is_read_back_and_damage_named(tmp_path):
    assert read_rollbacks(tmp_path) == []
    found = [Rollback(9, "NaN", 4, [7, 8]), Rollback(6, "spike", 4, [4, 5])]
    write_rollbacks(tmp_path, found)
    assert read_rollbacks(tmp_path) == found
    assert skipped_batches(found) == [4, 5, 7, 8]
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("8", "-8"))
    with pytest.raises(UserError, match=r"rollbacks\.json is damaged: rollbacks\.0\.skipped: '1'"):
        read_rollbacks(tmp_path)


def test_every_rollback_has_a_row(tmp_path):
    """Also where the run was killed before it was written, or goes on from an earlier step yet."""
    found = [Rollback(9, "NaN", 4, [7, 8]), Rollback(6, "spike", 2, [4, 5])]
    for start, known in ((4, found[:1]), (4, found[:1]), (2, found), (3, found), (0, found)):
        with Metrics(tmp_path, start, LoggerConfig(), {}, writes=True, rollbacks=known) as metrics:
            metrics.write({"step": start + 1, "train_loss": 3.0})
        assert [number for _, number in rows(tmp_path, "rollback")] == [*range(1, len(known) + 1)]
        assert all(step <= start for step, _ in rows(tmp_path, "rollback"))


def test_a_batch_of_noise_in_the_data_is_a_spike(corpus, tmp_path, capsys):
    """Windows of a shard on the disk, overwritten with ids at random: nothing else is told."""
    cache = tmp_path / "cache"
    words = [*TINY, *corpus, f"data.cache_dir={cache}", f"runs_dir={tmp_path}", "lr=0.02"]
    words += ["bits=bf16", "train.spike_window=16", "log_every=1", "checkpoint_every=8"]
    assert main(["train", *words, "max_steps=1", "name=first"]) == 0
    folder = next(path.parent for path in cache.glob("*/train-*.bin"))
    loader = Loader(open_dataset(folder).train, 4, 32, seed=0)
    samples = np.arange(4 * 24, 4 * 25)
    windows = permute(samples, loader.num_windows, 0, np.zeros(4, np.int64)).astype(np.int64)
    for window, (shard, start) in zip(windows, loader._windows._places(windows), strict=True):
        tokens = np.memmap(shard.path, "<u2", "r+")
        tokens[start : start + 33] = np.random.default_rng(window).integers(256, 512, 33)
        tokens.flush()
    run = [*words, "max_steps=28", "name=run", "train.spike_deviations=4"]
    assert main(["train", *run, "train.on_divergence=rollback"]) == 0
    (found,) = json.loads((tmp_path / "run" / FILE).read_text())["rollbacks"]
    assert (found["found_at"], found["step"], found["skipped"]) == (25, 16, [23, 24])
    assert "the loss rose to" in found["reason"]


def test_settings_are_checked(corpus, tmp_path, capsys):
    for word, message in {
        "train.on_divergence=rolback": "Did you mean 'rollback'?",
        "train.max_rollbacks=0": "train.max_rollbacks=0 must be at least 1",
        "train.skip_batches=1": "train.skip_batches=1 must be at least 2",
        "train.spike_deviations=0": "train.spike_deviations=0",
        "train.spike_window=4": "train.spike_window=4 must be at least 8",
    }.items():
        assert main(["train", *TINY, *corpus, f"runs_dir={tmp_path}", word]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
