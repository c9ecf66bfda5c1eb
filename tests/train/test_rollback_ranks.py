"""Rollbacks of a run of two processes: all go back together, and who goes on, on however many,
skips the same batches."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from questtrain.cli.main import main
from questtrain.store.rollbacks import read_rollbacks
from tests.train.test_parallel import ends, same_run, start
from tests.training_data import TINY

ROOT = Path(__file__).parents[2]
RUN = (
    *TINY, "max_steps=16", "log_every=2", "eval_every=8", "checkpoint_every=4", "bits=w4a4",
    "micro_batch_size=2", "train.on_divergence=rollback", "train.max_rollbacks=1",
)  # fmt: skip
POISONED = [sys.executable, "-m", "tests.train.poison", "train"]


def test_two_processes_go_back_together(corpus, tmp_path, monkeypatch):
    """The last one meets NaN in its half of a batch, and is killed (-9) after the rollback; one
    process goes on, where the same batch would do the same harm. The end is that of one process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    words = [*RUN, *corpus, f"runs_dir={tmp_path}"]
    monkeypatch.setenv("POISON", "nan:8 kill:12")
    codes, _, errors = ends(start([*words, "name=run"], POISONED))
    assert codes[1] == -signal.SIGKILL, errors
    assert "NaN or infinite at step 9: back to step 4, and without batches 7 to 8" in errors[0]
    assert "back to step" not in errors[1]
    assert len(read_rollbacks(tmp_path / "run")) == 1
    monkeypatch.setenv("POISON", "nan:8")
    (one,) = start([*words, "name=one"], POISONED, size=1)
    codes, _, errors = ends([one])
    assert codes == [0], errors
    assert main(["train", *words, "name=run"]) == 0
    same_run(tmp_path / "one", tmp_path / "run")


def test_they_end_together_when_it_has_not_helped(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("POISON", "nan:8,10")
    codes, outputs, errors = ends(
        start([*RUN, *corpus, f"runs_dir={tmp_path}", "name=run"], POISONED)
    )
    assert (codes, outputs) == ([1, 1], ["", ""])
    assert errors[0].count("at step 9, after 1 rollback, and train.max_rollbacks=1.") == 1
    assert "stopped" not in errors[1]
