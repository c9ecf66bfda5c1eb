"""``gpus=N``: the command starts the processes of one run itself, and ends as the run does.

On a CPU (gloo), where two processes with micro_batch_size = a rank's rows compute what one does.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.store.checkpoint import checkpoint_folders
from tests.sweep.processes import children, wait_for
from tests.train.test_parallel import COMMAND, RUN, same_run
from tests.training_data import rows

GPUS = (*RUN, "gpus=2")


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *words], stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; no rank is left behind, or the pipes would stay open."""
    try:
        output, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, output, errors


def has_logged(run: Path, count: int) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"train_loss") >= count


@pytest.fixture
def words(corpus, tmp_path) -> list[str]:
    return [*GPUS, *corpus, f"runs_dir={tmp_path}", "name=run"]


def test_two_processes_compute_what_one_does(words, tmp_path) -> None:
    """Bit for bit; what is said of the run, and its folder, are printed once."""
    code, output, errors = end(start(*words))
    assert (code, output.split()) == (0, [str(tmp_path / "run")]), errors
    assert errors.count("on 2 × CPU") == errors.count("validation loss") == 1
    assert main(["train", *words, "gpus=1", "micro_batch_size=2", "name=one"]) == 0
    same_run(tmp_path / "one", tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(words, tmp_path) -> None:
    """On one process or on two."""
    run = tmp_path / "run"
    process = start(*words)
    wait_for(lambda: has_logged(run, 2), process)
    process.send_signal(signal.SIGINT)
    code, output, errors = end(process)
    assert (code, output) == (130, ""), errors
    assert errors.count("the same command continues from here") == 1
    stopped_at = rows(run, "train_loss")[-1][0]
    assert checkpoint_folders(run)[-1].name == f"step_{stopped_at:08d}"
    code, output, errors = end(start(*words))
    assert (code, output.split()) == (0, [str(run)]), errors
    assert errors.count("resuming") == 1
    assert main(["train", *words, "gpus=null"]) == 0


def test_a_killed_process_is_named_and_ends_the_run(words, tmp_path) -> None:
    process = start(*words)
    wait_for(lambda: has_logged(tmp_path / "run", 2), process)
    victim = children(process)[0]
    os.kill(victim, signal.SIGKILL)
    code, output, errors = end(process)
    assert (code, output) == (128 + signal.SIGKILL, ""), errors
    assert errors.count("stopped: ") == 1
    named = (
        rf"rank \d of 2 \(host \S+, pid {victim}\) was killed by SIGKILL: the machine may be out"
    )
    assert re.search(named, errors)


def test_what_cannot_be_is_said_before_any_process_starts(words, monkeypatch, capsys) -> None:
    for word, message in {
        "batch_size=5": "batch_size=5 does not divide among gpus=2; the nearest that does is 4.",
        "gpus=0": "gpus=0 must be at least 1",
        "device=cuda": "this machine has no CUDA device",
        "device=auto": "gpus=2: this machine has no GPUs; device=cpu starts them on its cores.",
    }.items():
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        assert main(["train", *words, word]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert main(["train", *words, "batch_size=16", "gpus=16", "device=auto"]) == 2
    assert "gpus=16: this machine has 8 GPUs; gpus=8 takes all." in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", *words]) == 2
    assert "WORLD_SIZE=2 says that torchrun or srun has started them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["data.files=nothing/*.txt"], 2, "nothing/*.txt"),
        (["lr=1e30", "bits=bf16", "schedule.start_ratio=1e-33"], 1, "NaN or infinite at step"),
    ],
)
def test_what_the_processes_find_is_said_once(words, settings, code, message) -> None:
    found, output, errors = end(start(*words, *settings))
    assert (found, output, errors.count(message)) == (code, "", 1), errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_processes_of_a_killed_command_save_and_end(words, tmp_path) -> None:
    run = tmp_path / "run"
    process = start(*words, "checkpoint_every=1000", "max_steps=100000")
    wait_for(lambda: has_logged(run, 2), process)
    process.kill()
    code, _, errors = end(process)
    assert code == -signal.SIGKILL
    assert errors.count("the same command continues from here") == 1
    assert len(checkpoint_folders(run)) == 1
