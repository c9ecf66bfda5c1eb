"""train.on_divergence=rollback: the run goes on from a checkpoint without the batches that led to
trouble, and is, bit for bit, the run that never met them, whatever stops it in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.data import Loader
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.store.rollbacks import FILE
from questtrain.train import rollback
from questtrain.train.trainer import Trainer
from tests.train.poison import harmful
from tests.train.test_run import same_run
from tests.training_data import TINY, rows

STEPS = 16
RUN = (
    *TINY, f"max_steps={STEPS}", "log_every=2", "eval_every=8", "checkpoint_every=4", "bits=w4a4",
    "micro_batch_size=2", "train.spike_window=8", "train.max_rollbacks=2",
)  # fmt: skip
ROLLBACK = "train.on_divergence=rollback"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory) -> Run:
    """``make("name", *words, poison="nan:8", without=[7, 8], code=0)`` → the folder of a run:
    ``poison`` as in tests/train/poison.py; ``without``: batches that its loader, which knows of no
    rollbacks, never gives."""
    runs = tmp_path_factory.mktemp("rollback")

    def making(name: str, *words: str, poison="", without=(), code=0, runs=runs) -> Path:
        kept = [number for number in range(2 * STEPS) if number not in without]
        batch = Loader.batch
        with pytest.MonkeyPatch.context() as patch:
            if poison:
                patch.setattr(Trainer, "_update", harmful(Trainer._update, poison))
            if without:
                patch.setattr(
                    Loader, "batch", lambda loader, step, *rows: batch(loader, kept[step], *rows)
                )
            words = ("train", *RUN, *corpus, *words, f"runs_dir={runs}", f"name={name}")
            assert main([*words]) == code
        return runs / name

    return making


@pytest.fixture(scope="module")
def clean(make) -> Path:
    return make("clean")


@pytest.fixture(scope="module")
def rolled_back(make) -> Path:
    """Batch 8 makes the loss of step 9 NaN, which is seen at step 10."""
    return make("rolled-back", ROLLBACK, poison="nan:8")


@pytest.fixture(scope="module")
def never_met(make) -> Path:
    """The run of the batches that `rolled_back` is left with."""
    return make("never-met", without=[7, 8])


def rollbacks(run: Path) -> list[tuple[int, int, list[int]]]:
    """(found at, gone back to, skipped) of each."""
    found = json.loads((run / FILE).read_text())["rollbacks"]
    return [(each["found_at"], each["step"], each["skipped"]) for each in found]


def record(run: Path) -> dict:
    content: dict = json.loads((run / "run.json").read_text())
    return content


def test_a_run_without_trouble_is_the_same(make, clean):
    run = make("careful", ROLLBACK)
    same_run(clean, run)
    assert not (run / FILE).exists()
    assert (record(run)["rollbacks"], record(run)["skipped_batches"]) == (0, 0)
    assert not list(clean.rglob("losses.safetensors"))


def test_it_is_the_run_that_never_met_the_batches(clean, rolled_back, never_met):
    """With as many updates, at the learning rates of the configuration."""
    assert rollbacks(rolled_back) == [(9, 4, [7, 8])]
    same_run(never_met, rolled_back)
    assert rows(rolled_back, "lr") == rows(clean, "lr")
    early = rows(rolled_back, "train_loss")[:3]
    assert early == rows(clean, "train_loss")[:3]
    assert rows(rolled_back, "train_loss")[3:] != rows(clean, "train_loss")[3:]


def test_it_is_counted_and_said(make, rolled_back, capsys, caplog):
    """Every row once; those of the steps that are done again, and no others, are gone."""
    assert [step for step, _ in rows(rolled_back, "train_loss")] == [*range(2, STEPS + 1, 2)]
    lines = [json.loads(line) for line in (rolled_back / "metrics.jsonl").read_text().splitlines()]
    (place,) = [index for index, row in enumerate(lines) if "rollback" in row]
    reason = "the loss or its gradient became NaN or infinite at step 9"
    said = {"rollback": 1, "found_at": 9, "reason": reason, "skipped_batches": [7, 8]}
    assert lines[place] == {"step": 4, **said}
    assert [lines[place - 1]["step"], lines[place + 1]["step"]] == [4, 6]
    assert (record(rolled_back)["rollbacks"], record(rolled_back)["skipped_batches"]) == (1, 2)
    make("said", ROLLBACK, "max_steps=10", poison="nan:8")
    (line,) = [each for each in caplog.messages if "back to" in each]
    assert line == f"{reason}: back to step 4, and without batches 7 to 8 (rollback 1 of at most 2)"
    capsys.readouterr()
    assert main(["runs", str(rolled_back)]) == 0
    assert "rolled back: rolled-back: 1 time, 2 batches skipped" in capsys.readouterr().out


class Killed(BaseException):
    """Nothing after this moment happens."""


@pytest.mark.parametrize("moment", ["first removal", "record", "restoring", "row", "going on"])
def test_killed_at_any_moment_of_it(make, never_met, rolled_back, tmp_path, monkeypatch, moment):
    """And stopped, with two more checkpoints made than are kept, before that."""
    place, name = {
        "first removal": (rollback, "remove_folder"),
        "record": (rollback, "write_rollbacks"),
        "restoring": (Trainer, "_restore"),
        "row": (Trainer, "_initialise_scales"),
        "going on": (Trainer, "_validate"),
    }[moment]
    original = getattr(place, name)

    def dying(*arguments, **keywords):
        if not isinstance(arguments[0], Trainer) or (tmp_path / "run" / FILE).exists():
            raise Killed
        return original(*arguments, **keywords)

    words = (ROLLBACK, "train.keep_checkpoints=1")
    make("run", *words, poison="nan:8 term:6", runs=tmp_path, code=143)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying)
        make("run", *words, poison="nan:8 term:7", runs=tmp_path, code=143)
        with pytest.raises(Killed):
            make("run", *words, poison="nan:8", runs=tmp_path)
    run = make("run", *words, poison="nan:8", runs=tmp_path)
    same_run(never_met, run)
    assert rollbacks(run) == [(9, 4, [7, 8])], "the checkpoint of step 8 has learned batch 7"
    assert len(rows(run, "rollback")) == 1


def test_spikes_are_measured_by_the_losses_before_a_stop(make, tmp_path):
    """Those are in the checkpoints; the fault is real: the head of a model of five losses."""
    words = (ROLLBACK, "train.spike_deviations=5")
    unbroken = make("spike", *words, poison="spike:12")
    assert rollbacks(unbroken) == [(13, 8, [11, 12])]
    assert "the loss rose to" in (unbroken / FILE).read_text()
    same_run(make("never-spiked", without=[11, 12]), unbroken)
    make("run", *words, "train.keep_checkpoints=1", poison="term:11", runs=tmp_path, code=143)
    run = make("run", *words, "train.keep_checkpoints=1", poison="spike:12", runs=tmp_path)
    assert rollbacks(run) == rollbacks(unbroken)
    same_run(unbroken, run)
    not_asked = make("not-asked", poison="spike:12")
    same_run(
        not_asked,
        make("no-rule", ROLLBACK, "train.spike_deviations=null", poison="spike:12"),
    )


@pytest.mark.parametrize("words", [(), ("eval_every=100", "checkpoint_every=100")])
def test_where_useless_weights_are_seen_changes_nothing(make, never_met, words):
    """By a validation at once, or by the loss of the next step: the same batches are skipped."""
    run = make(f"after-{len(words)}", ROLLBACK, *words, poison="after:7")
    assert rollbacks(run) == [(9, 0 if words else 4, [7, 8])]
    assert rows(run, "train_loss") == rows(never_met, "train_loss")
    weights = [checkpoint_folders(each)[-1] / "model.safetensors" for each in (run, never_met)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(("bad", "back_to"), [(9, 4), (14, 12)])
def test_across_a_switch_of_bits_with_learned_scales(make, bad, back_to):
    """Scales start from the first batch of their phase: not from one that is skipped."""
    words = ("switch_at=0.5", "switch_from=w8a8", "method=lsq")
    run = make(f"switch-{bad}", ROLLBACK, *words, poison=f"nan:{bad}")
    assert rollbacks(run) == [(bad + 1, back_to, [bad - 1, bad])]
    same_run(make(f"never-{bad}", *words, without=[bad - 1, bad]), run)


def test_back_to_the_start(make, clean, tmp_path, capsys):
    """Of its own weights or of those of others, in the process that began or in a later one."""
    for name, words in {"own": (), "others": (f"init_from={clean}",)}.items():
        run = make(name, ROLLBACK, *words, poison="nan:4")
        assert rollbacks(run) == [(5, 0, [3, 4])]
        oracle = make(f"never-{name}", *words, without=[3, 4])
        same_run(oracle, run)
        make(name, ROLLBACK, *words, poison="term:3", runs=tmp_path, code=143)
        same_run(oracle, make(name, ROLLBACK, *words, poison="nan:4", runs=tmp_path))
    shutil.copytree(clean, tmp_path / "source")
    words = (ROLLBACK, f"init_from={tmp_path / 'source'}")
    make("lost", *words, poison="term:3", runs=tmp_path, code=143)
    shutil.rmtree(tmp_path / "source")
    capsys.readouterr()
    run = make("lost", *words, poison="nan:4", runs=tmp_path, code=1)
    assert "and it cannot start again: init_from=" in capsys.readouterr().err
    assert [folder.name for folder in checkpoint_folders(run)] == ["step_00000004"]
    assert record(run)["status"] == "diverged"


def test_it_ends_when_it_has_not_helped(make, capsys):
    """As `stop` does, and so does the same command again; with more of them it goes on."""
    for _ in range(2):
        run = make("bounded", ROLLBACK, poison="nan:8,10,12", code=1)
        said = capsys.readouterr().err
        assert (
            "NaN or infinite at step 9, after 2 rollbacks, and train.max_rollbacks=2. Last" in said
        )
        assert "good checkpoint: step 8 (" in said
        assert rollbacks(run) == [(9, 4, [7, 8]), (9, 4, [9, 10])]
        assert (record(run)["status"], record(run)["rollbacks"]) == ("diverged", 2)
    run = make("bounded", ROLLBACK, "train.max_rollbacks=3", poison="nan:8,10,12")
    assert (record(run)["status"], record(run)["skipped_batches"]) == ("completed", 6)
    same_run(make("never-bounded", without=[7, 8, 9, 10, 11, 12]), run)
    assert rows(run, "rollback") == [(4, 1), (4, 2), (4, 3)]


def test_a_run_that_stopped_goes_on_with_rollbacks(make, never_met, capsys):
    make("stopped", poison="nan:8", code=1)
    assert "became NaN or infinite at step 9. Last good checkpoint: step 8 (" in (
        capsys.readouterr().err
    )
    run = make("stopped", ROLLBACK, poison="nan:8")
    same_run(never_met, run)
