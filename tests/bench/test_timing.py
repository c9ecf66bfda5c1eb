"""Timing: who runs when, how often, and what becomes of the samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby

import pytest
import torch

from questtrain.bench.timing import Timing, cache_bytes, copies_beyond_cache, measure, timing

CPU = torch.device("cpu")


def test_all_cases_run_once_a_round_in_changing_order() -> None:
    """The calls' log, runs of one case taken together, is a permutation of all cases a round."""
    log: list[str] = []

    def case(name: str) -> list[Callable[[], object]]:
        return [lambda: (log.append(name), time.sleep(1e-4))]

    names = ["a", "b", "c", "d"]
    measure({name: case(name) for name in names}, rounds=12, milliseconds=0.1, device=CPU)
    blocks = [(name, len(list(group))) for name, group in groupby(log)]
    assert len(log) >= 4 * 2 * 13  # two for calibration, two a round
    assert len(blocks) > 20
    order = "".join(name for name, _ in blocks)
    assert len({order[i : i + 4] for i in range(4, len(order) - 4)}) > 6


def test_closures_take_turns() -> None:
    """Every buffer is used equally often, one after the other."""
    log: list[int] = []
    measure(
        {"x": [lambda i=i: log.append(i) for i in range(5)]},
        rounds=2,
        milliseconds=0.01,
        device=CPU,
    )
    assert log == [0, 1, 2, 3, 4] * (len(log) // 5)


def test_a_call_takes_what_it_takes() -> None:
    """Microseconds a call, not a pass: four sleeps of 2 ms a pass are 2 ms each."""
    result = measure(
        {"sleep": [lambda: time.sleep(2e-3)] * 4, "nothing": [lambda: None]},
        rounds=3,
        milliseconds=4.0,
        device=CPU,
    )
    assert 2000 <= result["sleep"].low <= result["sleep"].median < 20_000
    assert result["nothing"].median < 100


def test_percentiles() -> None:
    values = [float(v) for v in range(101)]
    assert timing(values[::-1]) == Timing(50.0, 10.0, 90.0)


def test_a_case_needs_calls() -> None:
    with pytest.raises(ValueError, match=r"without calls.*empty"):
        measure({"empty": []}, device=CPU)


def test_errors_of_a_call_come_through() -> None:
    def broken() -> None:
        raise RuntimeError("no such tile")

    with pytest.raises(RuntimeError, match="no such tile"):
        measure({"broken": [broken]}, device=CPU)


def test_copies_exceed_the_cache() -> None:
    size = cache_bytes(CPU)
    assert copies_beyond_cache(size // 8, CPU) * (size // 8) >= 2 * size
    assert copies_beyond_cache(1 << 40, CPU) == 2
