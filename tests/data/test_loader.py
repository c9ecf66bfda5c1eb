"""The order of the windows: a bijection per epoch, and a pure function of (data, seed, step)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questtrain.data import Loader, validation_batches
from questtrain.data.permutation import permute
from questtrain.data.records import ShardRecord
from questtrain.data.shards import Shard
from questtrain.data.token_reads import Stamp
from questtrain.errors import UserError


@given(n=st.integers(1, 3000), seed=st.integers(-5, 2**70), epoch=st.integers(0, 10**6))
@settings(deadline=None)
def test_permutation_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(n), n, seed, np.full(n, epoch))
    assert sorted(image.tolist()) == list(range(n))


def test_permutation_golden_values() -> None:
    """A run that is resumed with another numpy or questtrain must see the same order."""
    image = permute(np.arange(8), 1000, 42, np.zeros(8, np.int64))
    assert image.tolist() == [226, 518, 834, 413, 181, 851, 873, 378]


def test_permutation_looks_random() -> None:
    n = 10_001
    image = permute(np.arange(n), n, 0, np.zeros(n, np.int64)).astype(np.int64)
    # Of a random permutation, neighbours correlate with standard deviation 1/√n = 0.01.
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05
    # Fixed points are Poisson with mean 1.
    assert (image == np.arange(n)).sum() < 8


def test_permutation_differs_by_epoch_and_seed() -> None:
    images = [
        permute(np.arange(100), 100, seed, np.full(100, epoch)).tolist()
        for seed, epoch in itertools.product(range(3), range(3))
    ]
    assert len({tuple(image) for image in images}) == 9


def test_permutation_of_huge_ranges_needs_no_memory() -> None:
    n = 10**15 + 7
    image = permute(np.arange(1000), n, 3, np.zeros(1000, np.int64))
    assert len(set(image.tolist())) == 1000
    assert int(image.max()) < n


def test_every_window_once_an_epoch(make_shards) -> None:
    loader = Loader(make_shards(101, 7, 64), batch_size=5, sequence_length=10, seed=1)
    assert loader.num_windows == 10 + 0 + 6
    rows = np.concatenate([loader.batch(step) for step in range(16)])  # 5 epochs of 16 windows
    assert rows.dtype == np.int64
    assert rows.shape == (80, 11)
    assert (np.diff(rows, axis=1) == 1).all()
    epochs = rows[:, 0].reshape(5, 16)
    expected = [*range(0, 100, 10), *range(108, 168, 10)]
    assert all(sorted(epoch) == expected for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    assert [loader.epoch(step) for step in (0, 3, 4, 15)] == [0, 0, 1, 4]


@given(
    batch_size=st.integers(1, 24),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    step=st.integers(0, 10**7),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=50)
def test_ranks_together_see_the_batch(
    tmp_path_factory: pytest.TempPathFactory,
    batch_size: int,
    world_size: int,
    step: int,
    seed: int,
) -> None:
    shards = _shared_shards(tmp_path_factory)
    whole = Loader(shards, batch_size, 16, seed).batch(step)
    bounds = [batch_size * rank // world_size for rank in range(world_size + 1)]
    parts = [
        Loader(shards, batch_size, 16, seed).batch(step, slice(start, stop))
        for start, stop in itertools.pairwise(bounds)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(skipped=st.sets(st.integers(0, 40), max_size=20))
def test_batches_after_skipped_ones_move_up(
    tmp_path_factory: pytest.TempPathFactory, skipped: set[int]
) -> None:
    loader = Loader(_shared_shards(tmp_path_factory), 4, 16, seed=0)
    kept = [number for number in range(61) if number not in skipped][:40]
    expected = [loader.batch(number).tolist() for number in kept]
    loader.skip(sorted(skipped))
    assert [loader.number(step) for step in range(40)] == kept
    assert [loader.batch(step).tolist() for step in range(40)] == expected
    assert [loader.epoch(step) for step in range(40)] == [n * 4 // loader.num_windows for n in kept]


def _shared_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shard, ...]:
    path = Path(tmp_path_factory.getbasetemp()) / "shared.bin"
    if not path.exists():
        np.arange(1000, dtype="<u2").tofile(path)
    record = ShardRecord("shared.bin", "train", "p", 1000, 1, 1, "")
    return (Shard(path, "<u2", 1000, record, Stamp.of(path)),)


def test_seed_and_step_change_the_batch(make_shards) -> None:
    shards = make_shards(1000)
    first = Loader(shards, 8, 10, seed=0).batch(0)
    assert not np.array_equal(first, Loader(shards, 8, 10, seed=1).batch(0))
    assert not np.array_equal(first, Loader(shards, 8, 10, seed=0).batch(1))


def test_validation_windows_are_spread_evenly(make_shards) -> None:
    """All of them where the budget allows it, otherwise every k-th, over all shards."""
    shards = make_shards(25, 31)
    batches = list(validation_batches(shards, batch_size=2, sequence_length=10, max_tokens=10**6))
    assert [batch.shape for batch in batches] == [(2, 11), (2, 11), (1, 11)]
    assert np.concatenate(batches)[:, 0].tolist() == [0, 10, 25, 35, 45]
    some = list(validation_batches(shards, batch_size=8, sequence_length=10, max_tokens=29))
    assert np.concatenate(some)[:, 0].tolist() == [0, 25]
    few = list(validation_batches(shards, batch_size=8, sequence_length=10, max_tokens=3))
    assert [batch.shape for batch in few] == [(1, 11)]
    assert few[0].dtype == np.int64


def test_too_small_for_a_window(make_shards) -> None:
    with pytest.raises(UserError, match=r"training data is smaller.*needs 65 tokens.*has 64"):
        Loader(make_shards(64, 10), batch_size=1, sequence_length=64, seed=0)
    with pytest.raises(UserError, match="validation data is smaller than one window"):
        next(validation_batches(make_shards(5), 1, 64, 100))
    assert Loader(make_shards(65), batch_size=4, sequence_length=64, seed=0).num_windows == 1


@pytest.mark.parametrize("place", [0, 63, 64, 640, 960])
def test_an_id_beyond_the_vocabulary_is_named_with_its_place(tmp_path, place) -> None:
    """In whatever window it falls; the vocabulary's last id is none."""
    path = tmp_path / "train-00000.bin"
    record = ShardRecord(path.name, "train", "0", 1000, 1, 1, "")
    tokens = np.full(1000, 299, "<u2")
    tokens.tofile(path)
    shard = Shard(path, "<u2", 1000, record, Stamp.of(path), 300)
    assert Loader([shard], batch_size=15, sequence_length=64, seed=0).batch(0).max() == 299
    tokens[place] = 300
    tokens.tofile(path)
    shard = replace(shard, stamp=Stamp.of(path))
    with pytest.raises(
        UserError, match=rf"{path} is damaged: token {place} is the id 300, .* ends at 299"
    ):
        Loader([shard], batch_size=15, sequence_length=64, seed=0).batch(0)
