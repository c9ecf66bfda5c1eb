"""Whole sweeps on this machine: to the end, killed and started again, two at once, with failures.

A sweep that was disturbed must end with the losses of the one that was not, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.sweep.processes import (
    STEPS,
    attempts,
    children,
    kill,
    logged,
    losses,
    run,
    start,
    wait_for,
    write_sweep,
)


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    """The folder of the sweep that nothing disturbed."""
    place = tmp_path_factory.mktemp("unbroken")
    code, output, errors = run(str(write_sweep(place)), *corpus, f"runs_dir={place}", "--json")
    assert code == 0, errors
    states = json.loads(output)
    assert states["counts"] == {"done": 2, "running": 0, "failed": 0, "waiting": 0}
    assert states["progress"] == 1
    assert [line.split()[0] for line in errors.splitlines()].count("done") == 2
    return place / "tiny"


@pytest.fixture
def words(corpus, tmp_path) -> list[str]:
    """A sweep of the same points in a folder of its own."""
    return [str(write_sweep(tmp_path)), *corpus, f"runs_dir={tmp_path}"]


def test_the_folder_holds_runs_logs_and_the_manifest(unbroken):
    manifest = json.loads((unbroken / "sweep.json").read_text())
    names = set(manifest["jobs"])
    assert len(names) == 2
    assert set(losses(unbroken)) == names
    assert {file.stem for file in (unbroken / "logs").iterdir()} == names
    assert attempts(unbroken) == dict.fromkeys(names, 1)
    for name in names:
        log = (unbroken / "logs" / f"{name}.log").read_text()
        assert log.startswith("=== attempt 1, ")
        assert f"name={name}" in log.splitlines()[0]
        assert "validation loss" in log


def test_starting_again_does_nothing_and_says_so(unbroken, corpus):
    file = unbroken.parent / "tiny.yaml"
    code, output, errors = run(str(file), *corpus, f"runs_dir={unbroken.parent}")
    assert code == 0
    assert "0 of 2 runs to train" in errors
    assert "2 done, 0 running, 0 failed, 0 waiting; 100% of the FLOPs" in output
    assert set(attempts(unbroken).values()) == {1}


def test_killed_with_its_runs_and_started_again_ends_the_same(unbroken, words, tmp_path):
    """At a moment that nobody chose: every step from the first to the last but one can be it."""
    folder = tmp_path / "tiny"
    moment = random.randrange(1, 2 * STEPS - 2)
    sweeper = start(*words)
    wait_for(lambda: logged(folder) >= moment, sweeper)
    kill(sweeper.pid, *children(sweeper))
    sweeper.communicate()
    code, _, errors = run(*words)
    assert code == 0, errors
    assert losses(folder) == losses(unbroken), f"killed after {moment} logged steps"


def test_a_run_whose_sweeper_was_killed_trains_on_and_is_never_doubled(unbroken, words, tmp_path):
    """The orphan keeps its claim: the next sweeper waits for it and starts only the other run."""
    folder = tmp_path / "tiny"
    sweeper = start(*words, "launcher.workers=1")
    wait_for(lambda: logged(folder) >= 1, sweeper)
    (orphan,) = children(sweeper)
    os.kill(orphan, signal.SIGSTOP)  # so that it is surely there when the second one looks
    kill(sweeper.pid)
    sweeper.communicate()
    second = start(*words)
    try:
        wait_for(lambda: len(list(folder.glob("*/run.json"))) == 1, second)
        status = json.loads(run(*words, "--status", "--json")[1])
        assert status["counts"] == {"done": 1, "running": 1, "failed": 0, "waiting": 0}
    finally:
        os.kill(orphan, signal.SIGCONT)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert "another process trains it" in errors
    assert set(attempts(folder).values()) == {1}
    assert losses(folder) == losses(unbroken)


def test_what_a_killed_run_leaves_is_taken_over_by_the_sweeper_that_waits(
    unbroken, words, tmp_path
):
    folder = tmp_path / "tiny"
    first = start(*words, "launcher.workers=1")
    wait_for(lambda: logged(folder) >= 1, first)
    (child,) = children(first)
    os.kill(child, signal.SIGSTOP)
    second = start(*words, "launcher.workers=1")
    wait_for(lambda: list(folder.glob("*/run.json")), second)
    kill(first.pid, child)
    first.communicate()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert sorted(attempts(folder).values()) == [1, 2]
    assert losses(folder) == losses(unbroken)


def test_two_sweepers_at_once_train_every_run_once(unbroken, words, tmp_path):
    folder = tmp_path / "tiny"
    both = [start(*words, "launcher.workers=1") for _ in range(2)]
    for sweeper in both:
        _, errors = sweeper.communicate(timeout=120)
        assert sweeper.returncode == 0, errors
    assert set(attempts(folder).values()) == {1}
    assert losses(folder) == losses(unbroken)


def test_killed_and_warned_runs_wait_and_the_next_start_goes_on(unbroken, words, tmp_path):
    """kill -9 to the first one, as by a machine that is out of memory, SIGUSR1 to the second, as a
    cluster warns of a time limit: none has failed, and the end is that of the unbroken sweep."""
    folder = tmp_path / "tiny"
    sweeper = start(*words, "launcher.workers=1", "checkpoint_every=1000")
    wait_for(lambda: logged(folder) >= 7, sweeper)
    first = children(sweeper)
    kill(*first)
    before = logged(folder)
    wait_for(lambda: logged(folder) >= before + 7, sweeper)
    (second,) = children(sweeper)
    os.kill(second, signal.SIGUSR1)
    output, errors = sweeper.communicate(timeout=120)
    assert sweeper.returncode == 1
    assert "0 done, 0 running, 0 failed, 2 waiting" in output
    assert "Go on: questtrain sweep" in errors
    states = json.loads(run(*words, "--status", "--json")[1])["runs"]
    reasons = sorted(str(state["reason"]) for state in states)
    assert reasons[0] == "None"
    assert reasons[1].startswith("killed by SIGKILL: the machine may be out of memory (1 of 3")
    assert len(list(folder.glob("*/checkpoints/step_*"))) == 1
    code, _, errors = run(*words)
    assert code == 0, errors
    assert losses(folder) == losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_checkpoints_and_the_same_command_goes_on(unbroken, words, tmp_path, number):
    """To the whole process group, as a terminal sends Ctrl-C: the runs get it once."""
    folder = tmp_path / "tiny"
    sweeper = start(*words, "launcher.workers=1", "checkpoint_every=1000", start_new_session=True)
    wait_for(lambda: logged(folder) >= 2, sweeper)
    os.killpg(sweeper.pid, number)
    output, errors = sweeper.communicate(timeout=60)
    assert sweeper.returncode == 128 + number
    assert "stopping: 1 run saves a checkpoint" in errors
    assert "Go on: questtrain sweep" in errors
    assert "Traceback" not in errors
    assert "2 waiting" in output
    assert len(list(folder.glob("*/checkpoints/step_*"))) == 1
    if number == signal.SIGINT:
        code, _, errors = run(*words)
        assert code == 0, errors
        assert losses(folder) == losses(unbroken)


def test_the_third_ctrl_c_kills_what_does_not_stop(words, tmp_path):
    """A run that hears nothing, because it is suspended."""
    sweeper = start(*words, "launcher.workers=1")
    wait_for(lambda: logged(tmp_path / "tiny") >= 1, sweeper)
    (child,) = children(sweeper)
    os.kill(child, signal.SIGSTOP)
    for _ in range(3):
        sweeper.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, errors = sweeper.communicate(timeout=30)
    assert sweeper.returncode == 130, errors
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_failing_run_stops_no_other_stays_failed_and_is_retried_from_its_start(corpus, tmp_path):
    file = write_sweep(tmp_path, lr=[1e-3, 1e30], bits=["bf16"])
    words = [str(file), *corpus, f"runs_dir={tmp_path}", "schedule.start_ratio=1e-33"]
    folder = tmp_path / "tiny"
    code, output, errors = run(*words)
    assert code == 1
    assert "1 done, 0 running, 1 failed, 0 waiting" in output
    assert "the loss or its gradient became NaN or infinite at step" in errors
    assert "(log: " in errors
    assert errors.rstrip().endswith("--retry-failed")
    good, bad = sorted(attempts(folder), key=lambda name: "-lr1e+30-" in name)
    code, _, errors = run(*words)
    assert code == 1
    assert "0 of 2 runs to train" in errors
    assert attempts(folder) == {good: 1, bad: 1}
    metrics = folder / bad / "metrics.jsonl"
    before = metrics.stat().st_ino
    code, _, errors = run(*words, "--retry-failed")
    assert code == 1
    assert attempts(folder) == {good: 1, bad: 2}
    assert "resuming" not in (folder / "logs" / f"{bad}.log").read_text()
    assert metrics.stat().st_ino != before


def test_runs_go_to_gpus_of_their_own_and_share_one_as_they_fit(corpus, tmp_path):
    """`nvidia-smi` says two GPUs, of which one is hidden and one is asked for: what each child
    sees stands in its environment. (The runs themselves find no CUDA and use the CPU.)"""
    tools = tmp_path / "tools"
    tools.mkdir()
    smi = tools / "nvidia-smi"
    rows = "\\n".join(f"{i}, GPU-{i}{i}, NVIDIA H100 80GB HBM3, 81559, 0" for i in range(3))
    smi.write_text(f'#!/bin/sh\nprintf "{rows}\\n"\n')
    smi.chmod(0o755)
    (tools / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'train' in sys.orig_argv:\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'a') as file:\n"
        "        print(os.environ['CUDA_VISIBLE_DEVICES'], file=file)\n"
    )
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(tools),
        "CUDA_VISIBLE_DEVICES": "2,GPU-11",
    }
    words = [str(write_sweep(tmp_path)), *corpus, f"runs_dir={tmp_path}", "device=auto"]
    code, _, errors = run(*words, env=environment)
    assert code == 0, errors
    assert "2 of 2 runs to train: GPU 2 (up to 4 runs), GPU 1 (up to 4 runs)" in errors
    assert sorted((tmp_path / "seen").read_text().split()) == ["1", "2"]
    code, _, errors = run(*words, "launcher.gpus=[0]", env=environment)
    assert code == 2
    assert "launcher.gpus: there is no GPU 0; visible: 2, 1." in errors


def test_a_sweep_that_cannot_write_says_where(words, tmp_path):
    (tmp_path / "tiny").write_text("")
    code, _, errors = run(*words)
    assert code == 2
    assert f"sweep folder {tmp_path / 'tiny'} cannot be written" in errors
