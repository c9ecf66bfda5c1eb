"""The run record: one reader for what a run wrote, earlier versions and other hands included."""

from __future__ import annotations

import json

import pytest

from questtrain.store.json_file import DamagedJson
from questtrain.store.run_record import read_run_record
from tests.sweep.test_state import RECORD


def test_numbers_and_columns_stay_as_they_were_written(tmp_path):
    """Whole ones whole, those of other versions last; what an earlier version lacks is None."""
    written = RECORD | {"tokens": 1e9, "w_bits": 4, "trust_scale": "inf", "mine": [1, "x"]}
    (tmp_path / "run.json").write_text(json.dumps(written))
    columns = read_run_record(tmp_path).columns
    kept = {key: columns[key] for key in written}
    assert json.dumps(kept) == json.dumps(written)
    assert list(columns)[-1] == "mine"
    assert columns["world_size"] is None


def test_a_run_that_has_not_ended_has_none(tmp_path):
    assert read_run_record(tmp_path) is None


@pytest.mark.parametrize("key", ["non_embedding_params", "tokens", "val_loss"])
def test_a_completed_run_has_what_a_law_needs(tmp_path, key):
    (tmp_path / "run.json").write_text(json.dumps(RECORD | {key: None}))
    with pytest.raises(
        DamagedJson, match=f"'{key}' holds None.* Remove it, and the same `questtrain train`"
    ):
        read_run_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RECORD | {key: None, "status": "diverged"}))
    assert read_run_record(tmp_path).status == "diverged"
