"""Whole runs through the command line: record, resume, kill, signals, divergence, folders."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from questtrain.cli.main import main
from questtrain.store.checkpoint import checkpoint_folders
from tests.training_data import TINY, questtrain, rows

STEPS = 24
RUN = (*TINY, f"max_steps={STEPS}", "log_every=1", "eval_every=8", "checkpoint_every=5")


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    """The run that was never stopped; ``imports`` beside it is what its process imported."""
    runs = tmp_path_factory.mktemp("unbroken")
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    words = ["train", *RUN, *corpus, f"runs_dir={runs}", "name=run"]
    result = questtrain(*words, env=environment)
    assert result.returncode == 0, result.stderr
    (runs / "imports").write_text(result.stderr)
    return runs / "run"


def test_a_run_on_a_cpu_does_not_import_the_compiler_of_torch(unbroken):
    """It would begin a second or two later."""
    imported = (unbroken.parent / "imports").read_text().split()
    assert "torch.optim.adamw" in imported
    assert "torch._dynamo" not in imported


def same_run(one: Path, other: Path) -> None:
    for key in ("train_loss", "grad_norm", "lr", "val_loss"):
        assert rows(one, key) == rows(other, key), key
    weights = [checkpoint_folders(run)[-1] / "model.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def in_progress(words: tuple[str, ...], run: Path, logged: int) -> subprocess.Popen[str]:
    """Start a run and return while it trains, when it has logged so many steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "questtrain.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"train_loss") < logged:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


def test_the_record_says_what_was_run(unbroken):
    """run.json has design.md's fields and what else defines a method; the numbers agree with
    config, metrics and arithmetic."""
    record = json.loads((unbroken / "run.json").read_text())
    fields = (
        "name status model non_embedding_params total_params bits w_bits a_bits format sparsity"
        " method hadamard trust_scale dataset tokenizer tokens tokens_per_param sequence_length"
        " batch_tokens lr seed steps train_loss val_loss wall_seconds tokens_per_second mfu"
        " peak_memory_bytes device questtrain_version git_revision torch_version"
        " grid trust_error lr_scale scale_weight_decay world_size data_sha256 data_tokens epochs"
        " switch_at switch_from init_from init_sha256"
        " scale_dtype group_size target rollbacks skipped_batches evaluations"
    )
    assert list(record) == fields.split()
    config = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert record["status"] == "completed"
    assert record["steps"] == STEPS
    assert record["tokens"] == STEPS * 4 * 32
    assert re.fullmatch(r"tokenizer\.json@[0-9a-f]{8}", record["tokenizer"]), "no path in it"
    assert record["total_params"] == record["non_embedding_params"] + 2 * 512 * 32
    assert config["model"]["vocab_size"] == 512
    assert record["val_loss"] == rows(unbroken, "val_loss")[-1][1]
    assert record["trust_scale"] == pytest.approx(16 / 15)
    assert (unbroken / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_every_step_is_logged_once_and_the_loss_falls(unbroken):
    losses = rows(unbroken, "train_loss")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert losses[-1][1] < losses[0][1] - 0.2
    assert [step for step, _ in rows(unbroken, "val_loss")] == [8, 16, 24]


def test_a_complete_run_is_left_alone(unbroken, corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*.json*")}
    words = [*RUN, *corpus, f"runs_dir={unbroken.parent}", "name=run"]
    assert main(["train", *words]) == 0
    assert str(unbroken) in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("kill_after", [3, 7, 19])
def test_killed_and_resumed_equals_unbroken(unbroken, corpus, tmp_path, kill_after):
    """kill -9 at a step of the run's choosing; the resumed run is bit-identical throughout."""
    words = ("train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run")
    run = tmp_path / "run"
    process = in_progress(words, run, kill_after)
    process.kill()
    process.communicate()
    assert not (run / "run.json").exists()
    result = questtrain(*words)
    assert result.returncode == 0, result.stderr
    same_run(unbroken, run)


def test_a_damaged_newest_checkpoint_costs_steps_but_nothing_else(unbroken, corpus, tmp_path):
    """The previous checkpoint is used, it is said, and the end is the same."""
    words = ("train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run")
    assert questtrain(*words).returncode == 0
    run = tmp_path / "run"
    (run / "run.json").unlink()
    newest = checkpoint_folders(run)[-1]
    os.truncate(newest / "optimizer.safetensors", 100)
    result = questtrain(*words)
    assert result.returncode == 0
    assert f"checkpoint {newest} is damaged: optimizer.safetensors" in result.stderr
    assert "resuming" in result.stderr
    same_run(unbroken, run)


def test_sigterm_saves_and_the_same_command_goes_on(unbroken, corpus, tmp_path):
    words = ("train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run")
    run = tmp_path / "run"
    process = in_progress(words, run, 1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    assert questtrain(*words).returncode == 0
    same_run(unbroken, run)


def test_micro_batches_change_nothing_but_rounding(unbroken, corpus, tmp_path):
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "micro_batch_size=1"]
    assert main(["train", *words]) == 0
    ours, theirs = rows(tmp_path / "run", "train_loss"), rows(unbroken, "train_loss")
    np.testing.assert_allclose([v for _, v in ours[:3]], [v for _, v in theirs[:3]], rtol=1e-4)
    np.testing.assert_allclose(ours[-1][1], theirs[-1][1], rtol=2e-2)


def test_another_config_in_the_folder_is_refused_with_the_difference(unbroken, corpus, capsys):
    words = [*RUN, *corpus, f"runs_dir={unbroken.parent}", "name=run", "lr=0.123"]
    before = (unbroken / "config.yaml").read_text()
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err
    assert "lr: 0.003 in the folder, 0.123 asked for" in message
    assert (unbroken / "config.yaml").read_text() == before


def test_resume_never_and_must(unbroken, corpus, tmp_path, capsys):
    words = [*RUN, *corpus, "name=run"]
    assert main(["train", *words, f"runs_dir={unbroken.parent}", "resume=never"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", *words, f"runs_dir={tmp_path}", "resume=must"]) == 2
    assert "no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a file", "no permission"])
def test_an_unwritable_run_folder(corpus, tmp_path, capsys, place):
    blocker = tmp_path / "file"
    blocker.write_text("")
    runs = blocker / "runs" if place == "a file" else Path("/proc/questtrain")
    assert main(["train", *RUN, *corpus, f"runs_dir={runs}"]) == 2
    assert f"run folder {runs}" in capsys.readouterr().err


def test_two_processes_never_train_in_one_folder(corpus, tmp_path, capsys):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert main(["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]) == 2
    assert "another process is training" in capsys.readouterr().err


def test_a_run_that_never_began_leaves_no_folder(corpus, tmp_path, capsys):
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "data.files=nothing/*.txt"]
    assert main(["train", *words]) == 2
    assert "nothing/*.txt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_divergence_stops_with_step_checkpoint_and_advice(corpus, tmp_path, capsys):
    """Weights that overflow: exit 1, the step, the last good checkpoint, a record that says so."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "lr=1e30", "bits=bf16"]
    assert main(["train", *words, "schedule.start_ratio=1e-33", "checkpoint_every=1"]) == 1
    message = capsys.readouterr().err
    assert "became NaN or infinite at step" in message
    assert "Last good checkpoint: step" in message
    assert "Try a lower lr" in message
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"


def test_a_vocabulary_that_is_not_the_tokenizers(corpus, tmp_path, capsys):
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "model.vocab_size=1000"]
    assert main(["train", *words]) == 2
    assert "has 512 tokens; leave model.vocab_size out" in capsys.readouterr().err


def test_wandb_offline_receives_the_run(corpus, tmp_path):
    """logger=wandb in offline mode leaves a W&B run that holds the metrics' keys."""
    words = ("train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "max_steps=6")
    result = questtrain(*words, "logger=wandb", "logger.mode=offline")
    assert result.returncode == 0, result.stderr
    (logged,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    content = logged.read_bytes()
    for key in (b"train_loss", b"val_loss", b"tokens_per_second"):
        assert key in content
