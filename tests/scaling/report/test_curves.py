"""Loss curves on the page: few points, the noise gone, the ends where they were."""

import json

import numpy as np
import pytest

from questtrain.scaling.report.curves import MOST_POINTS, curve_records, spread, thinned
from questtrain.scaling.runs import Run


def test_a_short_curve_keeps_its_points():
    x, y = np.arange(5.0), np.array([5.0, 4, 3, 2, 1])
    kept_x, kept_y = thinned(x, y, 10)
    assert kept_x.tolist() == x.tolist()
    assert kept_y.tolist() == y.tolist()


def test_a_long_one_is_thinned_and_calmer():
    rng = np.random.default_rng(0)
    x = np.arange(1.0, 30_001)
    clean = 3 + 7 / np.sqrt(x)
    kept_x, kept_y = thinned(x, clean + rng.normal(0, 0.05, len(x)), 300)
    assert 200 < len(kept_x) <= 300
    assert (kept_x[0], kept_x[-1]) == (1, 30_000)
    late = kept_x > 1000
    assert np.abs(kept_y - (3 + 7 / np.sqrt(kept_x)))[late].max() < 0.03
    assert kept_y[0] == pytest.approx(10, abs=0.2), "the fast beginning is not smeared"


@pytest.mark.parametrize(("count", "limit"), [(0, 16), (1, 16), (16, 16), (17, 16), (10**6, 300)])
def test_spread_reaches_from_end_to_end(count, limit):
    kept = spread(count, limit)
    assert len(kept) <= min(count, limit)
    assert (np.diff(kept) > 0).all()
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def make_run(folder, rows):
    folder.mkdir()
    numbered = [{"step": step, **row} for step, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
    return Run(folder.name, "completed", {"precision": "4"}, str(folder), folder)


def test_many_runs_share_the_points(tmp_path):
    rows = [{"train_loss": 3.0, "tokens": step} for step in range(1, 1001)]
    one = make_run(tmp_path / "a", rows)
    (record,) = curve_records([one])
    assert 200 < len(record["x"]) <= MOST_POINTS
    records = curve_records([one] * 1000)
    assert sum(len(record["x"]) for record in records) <= 60_000


def test_what_is_no_number_is_left_out(tmp_path):
    rows = [
        {"train_loss": float("nan"), "tokens": 1},
        {"train_loss": 3.123456789, "tokens": 2},
        {"train_loss": None, "tokens": 3},
        {"train_loss": 4.0},
        {"val_loss": 3.5, "tokens": 4},
    ]
    (record,) = curve_records([make_run(tmp_path / "a", rows)])
    assert (record["x"], record["y"]) == ([2], [3.1235])
    assert (record["vx"], record["vy"]) == ([4], [3.5])
    empty = make_run(tmp_path / "b", [])
    assert curve_records([empty, Run("row", "completed", {}, "t.csv")]) == []
