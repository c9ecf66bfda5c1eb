"""The slurm launcher against a real Slurm: an array to its end, requeued runs, ranks, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from questtrain.store.checkpoint import checkpoint_folders
from questtrain.sweep.attempt import read_outcome
from questtrain.sweep.job import Job
from questtrain.sweep.launchers.slurm_queue import read_submissions
from questtrain.sweep.manifest import read_manifest
from tests.slurm.cluster import missing_programs, running_cluster, slurm
from tests.training_data import TINY, rows

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
]

SLURM = ("launcher=slurm", "launcher.gpus_per_node=0", "launcher.cpus_per_task=1")
SHORT = ("max_steps=12", "log_every=1", "eval_every=6", "checkpoint_every=4")
LONG = ("max_steps=250", "log_every=1", "eval_every=125", "checkpoint_every=1000")

Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


@pytest.fixture
def sweep(cluster, corpus, tmp_path) -> Sweep:
    """``sweep("seed=0,1", …)``: questtrain sweep in Slurm, of one tiny run a seed."""
    file = tmp_path / "tiny.yaml"
    file.write_text("title: tiny runs\naxes:\n  seed: [0]\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "questtrain.cli.main", "sweep", str(file)]
        return subprocess.run(
            [*command, *TINY, *corpus, f"runs_dir={tmp_path}", *SLURM, *words],
            env={**os.environ, **cluster},
            capture_output=True,
            text=True,
            timeout=200,
        )

    return run


def wait_for(what: Callable[[], bool], folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, what_was_said(folder)
        time.sleep(0.05)


def only_job(folder: Path) -> Job:
    jobs = read_manifest(folder)
    assert jobs is not None
    (job,) = jobs
    return job


def logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"train_loss") if metrics.exists() else 0


def what_was_said(folder: Path) -> str:
    files = [*folder.glob("logs/*"), *folder.glob(".sweep/slurm/*.err")]
    return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)


def test_an_array_of_four_to_the_end(sweep, tmp_path) -> None:
    """One array, two at a time; a second command submits nothing while it is queued; status knows;
    with wait=true the third comes back when all are done."""
    words = ("seed=0,1,2,3", *SHORT, "launcher.array_parallelism=2")
    first = sweep(*words)
    assert first.returncode == 0, first.stderr
    submitted = re.search(r"submitted 4 runs as Slurm job (\d+), 2 at a time at most", first.stderr)
    assert submitted, first.stderr
    assert f"scancel {submitted[1]}" in first.stderr
    folder = tmp_path / "tiny"
    assert sorted(read_submissions(folder).values()) == [f"{submitted[1]}_{n}" for n in range(4)]
    status = json.loads(sweep(*words, "--status", "--json").stdout)
    assert any("Slurm job" in (run["reason"] or "") for run in status["runs"])
    again = sweep(*words, "launcher.wait=true")
    assert "nothing to submit: 4 of 4 runs are queued or running" in again.stderr
    assert again.returncode == 0, again.stderr + what_was_said(folder)
    status = json.loads(sweep(*words, "--status", "--json").stdout)
    assert status["counts"] == {"done": 4, "running": 0, "failed": 0, "waiting": 0}
    jobs = read_manifest(folder)
    assert jobs is not None
    for job in jobs:
        assert [step for step, _ in rows(job.folder, "train_loss")] == list(range(1, 13))
        assert "attempt 1" in job.log_file.read_text()
        assert "validation loss" in job.log_file.read_text()
    assert list(folder.glob(".sweep/slurm/*_submission.sh"))
    assert "nothing to submit: 0 of 4 runs" in sweep(*words).stderr


@pytest.mark.parametrize(("tasks", "how"), [(1, "requeue"), (2, "requeue"), (2, "warning")])
def test_a_requeued_run_goes_on_from_its_checkpoint(sweep, cluster, tmp_path, tasks, how) -> None:
    """One task or two ranks, ended by Slurm's own requeue, as in a preemption; two that get Slurm's
    warning (SIGUSR2), as before the time limit. The run saves, waits in the queue, goes on, and its
    losses are those of an unbroken run by one process."""
    words = (*LONG, f"launcher.tasks_per_node={tasks}", "micro_batch_size=2")
    started = sweep(*words)
    assert started.returncode == 0, started.stderr
    folder = tmp_path / "tiny"
    job = only_job(folder)
    (task_id,) = read_submissions(folder).values()
    wait_for(lambda: logged(job.folder) >= 5, folder)
    if how == "requeue":
        slurm(cluster, "scontrol", "requeue", task_id)
    else:
        slurm(cluster, "scancel", "--signal=USR2", task_id)
    wait_for(lambda: bool(checkpoint_folders(job.folder)), folder)
    ended = sweep(*words, "launcher.wait=true")
    assert "1 of 1 runs are queued or running" in ended.stderr
    assert ended.returncode == 0, ended.stderr + what_was_said(folder)
    outcome = read_outcome(job)
    assert outcome is not None
    assert (outcome.attempts, outcome.exit_code) == (2, 0)
    assert job.log_file.read_text().count("resuming") == 1
    assert json.loads(job.run_file.read_text())["world_size"] == tasks
    unbroken = [*job.words, f"runs_dir={tmp_path}", "name=unbroken"]
    command = [sys.executable, "-m", "questtrain.cli.main", "train", *unbroken]
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 0
    for key in ("train_loss", "val_loss"):
        assert rows(job.folder, key) == rows(tmp_path / "unbroken", key)


def test_the_time_limit_of_two_tasks(sweep, cluster, tmp_path) -> None:
    """Slurm itself warns them ahead of the limit: they save, are queued again, and go on."""
    words = ("max_steps=100000", *LONG[1:], "launcher.tasks_per_node=2")
    started = sweep(*words, "launcher.time=1", "launcher.grace=50")
    assert started.returncode == 0, started.stderr
    folder = tmp_path / "tiny"
    job = only_job(folder)
    (task_id,) = read_submissions(folder).values()
    try:
        wait_for(lambda: "resuming" in what_was_said(folder), folder, 180)
    finally:
        slurm(cluster, "scancel", task_id)
    log = job.log_file.read_text()
    assert log.count("the same command continues from here") == 1, log
    assert log.count("on 2 × CPU") == 2, log
    wait_for(lambda: not slurm(cluster, "squeue", "-h"), folder)
    assert "gave no sign of life" not in what_was_said(folder)


def test_a_rank_that_dies_in_slurm_is_named(sweep, tmp_path) -> None:
    """Two tasks, one of which is killed as by the kernel: the log says which."""
    started = sweep(*LONG[1:], "max_steps=100000", "launcher.tasks_per_node=2")
    assert started.returncode == 0, started.stderr
    folder = tmp_path / "tiny"
    job = only_job(folder)
    wait_for(lambda: logged(job.folder) >= 5, folder)
    victim = process_of(job.name, rank=1)
    os.kill(victim, signal.SIGKILL)
    named = rf"rank 1 of 2 \(host \S+, pid {victim}\) died without a word"
    wait_for(lambda: bool(re.search(named, what_was_said(folder))), folder)


def process_of(name: str, rank: int) -> int:
    """The process of a run in Slurm that trains as ``rank``."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={rank}".encode() in variables and name.encode() in words:
            return int(place.name)
    raise AssertionError(f"no rank {rank} of {name}")


def test_a_cancelled_run_saves_and_is_not_requeued(sweep, cluster, tmp_path) -> None:
    """scancel is for good: the run saves, leaves the queue, and waits for the next command."""
    assert sweep(*LONG).returncode == 0
    folder = tmp_path / "tiny"
    job = only_job(folder)
    (task_id,) = read_submissions(folder).values()
    wait_for(lambda: logged(job.folder) >= 5, folder)
    slurm(cluster, "scancel", task_id)
    wait_for(lambda: not slurm(cluster, "squeue", "-h"), folder)
    assert checkpoint_folders(job.folder)
    status = json.loads(sweep(*LONG, "--status", "--json").stdout)
    assert status["counts"] == {"done": 0, "running": 0, "failed": 0, "waiting": 1}
    assert status["runs"][0]["reason"] is None


def test_a_failing_run_is_said_to_have_failed(sweep, tmp_path) -> None:
    """Three ranks cannot share four sequences: one reason in log and status, exit 1, and the run is
    not submitted again before --retry-failed."""
    words = (*SHORT, "launcher.tasks_per_node=3")
    ended = sweep(*words, "launcher.wait=true")
    assert ended.returncode == 1
    folder = tmp_path / "tiny"
    reason = "batch_size=4 does not divide among 3 processes; the nearest that does is 3."
    assert f"failed: {only_job(folder).name}: {reason}" in ended.stderr, what_was_said(folder)
    assert only_job(folder).log_file.read_text().count(reason) == 1
    status = json.loads(sweep(*words, "--status", "--json").stdout)
    assert status["runs"][0]["reason"] == reason
    assert "nothing to submit" in sweep(*words).stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("launcher.partition=mian", "Slurm refused the jobs: .*invalid partition"),
        ("launcher.time=soon", "launcher.time='soon' is no time"),
        ("launcher.nodes=0", "launcher.nodes=0 must be at least 1"),
        ("launcher.tasks_per_node=0", "launcher.tasks_per_node=0 must be at least 1"),
    ],
)
def test_what_slurm_refuses(sweep, tmp_path, word, message) -> None:
    """One message, exit 2, and nothing recorded as submitted."""
    refused = sweep(*SHORT, word)
    assert refused.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", refused.stderr), refused.stderr
    assert read_submissions(tmp_path / "tiny") == {}
