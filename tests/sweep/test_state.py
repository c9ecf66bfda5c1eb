"""Each state of a run as it is read from disk, and what is computed from many."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from questtrain.errors import UserError
from questtrain.sweep.attempt import (
    Attempt,
    claim,
    failure_reason,
    forget_failure,
    is_claimed,
    read_outcome,
)
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.manifest import read_manifest, record_jobs
from questtrain.sweep.state import ended, progress, read_state

RECORD = {
    "name": "run",
    "status": "completed",
    "model": "30M",
    "non_embedding_params": 30_482_560,
    "bits": "w4a4",
    "method": "quest",
    "tokens": 100_000,
    "val_loss": 3.5,
}
"""The least that a completed run's record holds."""


def job_in(folder: Path, name: str = "run", flops: float = 1e12, model: str = "30M") -> Job:
    """100 steps of 1000 tokens."""
    words = ("bits=w4a4", f"name={name}")
    return Job(
        name=name,
        words=words,
        folder=folder / name,
        model=model,
        bits="w4a4",
        method="quest",
        steps=100,
        tokens=100_000,
        flops=flops,
        memory_bytes=2**30,
    )


def write(path: Path, *values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def outcome(code: int | None, reason: str | None = None) -> dict:
    return {
        "attempts": 1,
        "started": "",
        "ended": None,
        "exit_code": code,
        "reason": reason,
        "extra": [],
    }


def trained(job: Job, step: int, rate: float = 500.0) -> None:
    """Metrics up to a step, the last line torn as a kill leaves it."""
    rows = [{"step": s, "train_loss": 5.0 - s / 100, "tokens_per_second": rate} for s in (1, step)]
    write(job.folder / "metrics.jsonl", *rows)
    with (job.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')


def test_a_job_that_nobody_began_waits(tmp_path):
    job = job_in(tmp_path)
    state = read_state(job)
    assert (state.status, state.step, state.train_loss) == ("waiting", 0, None)
    assert ended(job) is None
    assert not is_claimed(job)


def test_a_claimed_job_runs_with_its_last_row_and_its_rate(tmp_path):
    job = job_in(tmp_path)
    trained(job, 40)
    descriptor = claim(job)
    assert descriptor is not None
    state = read_state(job)
    assert (state.status, state.step, state.train_loss) == ("running", 40, 4.6)
    assert state.seconds_left == pytest.approx(60 * 1000 / 500)
    assert claim(job) is None
    os.close(descriptor)
    assert read_state(job).status == "waiting"


def test_a_run_that_was_started_by_hand_is_running_and_cannot_be_claimed(tmp_path):
    from filelock import FileLock

    job = job_in(tmp_path)
    job.folder.mkdir(parents=True)
    with FileLock(job.folder / ".lock"):
        assert read_state(job).status == "running"
        assert claim(job) is None
    assert read_state(job).status == "waiting"


def test_a_completed_record_is_done_whatever_the_attempt_says(tmp_path):
    job = job_in(tmp_path)
    write(job.attempt_file, outcome(1, "odd"))
    write(job.run_file, RECORD | {"val_loss": 3.5, "tokens_per_second": 10.0, "mfu": 0.3})
    state = read_state(job)
    assert (state.status, state.step, state.val_loss, state.mfu) == ("done", 100, 3.5, 0.3)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, "failed") for code in (1, 2, 134, -6, -11)),
        *((code, "waiting") for code in (130, 143, 129, 138, 140, None)),
        *((code, "waiting") for code in (-2, -15, -1, -10, -12)),
        *((code, "waiting, and why") for code in (-9, 137, 74)),
    ],
)
def test_how_an_attempt_ended_decides(tmp_path, code, status):
    """A run that was asked to stop, was killed or found the disk full, or whose sweeper was killed,
    goes on; others have failed."""
    job = job_in(tmp_path)
    trained(job, 40)
    write(job.attempt_file, outcome(code, "why"))
    state = read_state(job)
    assert (state.status, state.step) == (status.removesuffix(", and why"), 40)
    assert state.reason == (None if status == "waiting" else "why")


def test_a_run_that_is_killed_again_and_again_has_failed(tmp_path):
    """Three times in a row; a stop in between begins the count anew, and so does a retry."""
    job = job_in(tmp_path)
    killed, stopped = "kill -9 $$", "exit 143"
    for how, status in [
        (killed, "waiting"),
        (killed, "waiting"),
        (stopped, "waiting"),
        (killed, "waiting"),
        (killed, "waiting"),
        (killed, "failed"),
    ]:
        attempt = Attempt(job, claim(job), command=["bash", "-c", how])
        attempt.process.wait()
        assert attempt.finish() is not None
        state = read_state(job)
        assert state.status == status, state
    assert "killed by SIGKILL" in state.reason
    assert "3 of 3 times, which is a failure" in state.reason
    forget_failure(job, claim(job))
    assert read_state(job).status == "waiting"
    assert read_outcome(job).kills == 0


@pytest.mark.parametrize("content", [{"extra": "x"}, {"attempts": "1"}, {"exit_code": "0"}])
def test_an_outcome_of_other_types_is_none(tmp_path, content):
    job = job_in(tmp_path)
    write(job.attempt_file, outcome(0) | content)
    assert read_outcome(job) is None


@pytest.mark.parametrize("loss", ["3.5", [3.5], float("nan")])
def test_a_record_of_other_types_hides_no_state(tmp_path, loss):
    job = job_in(tmp_path)
    write(job.run_file, RECORD | {"val_loss": loss})
    assert read_state(job).status == "waiting"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("steps", "100", "jobs.run: 'steps' holds '100'; it should be a valid integer"),
        ("words", "bits=w4a4", "jobs.run: 'words' holds 'bits=w4a4'; it should be a valid array"),
        ("flops", -1, "jobs.run: 'flops' holds -1; it should be greater than 0"),
    ],
)
def test_a_damaged_manifest_names_the_field(tmp_path, key, value, problem):
    from questtrain.sweep import read_sweep

    record_jobs(read_sweep("fig3_lsq"), tmp_path, [job_in(tmp_path)])
    file = tmp_path / "sweep.json"
    content = json.loads(file.read_text())
    content["jobs"]["run"][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert problem in str(error.value)
    assert "Move it away" in str(error.value)


def test_a_diverged_run_has_failed_and_starts_over_when_it_is_retried(tmp_path):
    job = job_in(tmp_path)
    write(job.run_file, RECORD | {"status": "diverged"})
    assert read_state(job).reason == "diverged: the loss became NaN or infinite"
    write(job.run_file, RECORD | {"status": "diverged", "rollbacks": 5})
    assert (read_state(job).status, ended(job)) == ("failed", "failed")
    assert read_state(job).reason == "diverged, after 5 rollbacks"
    write(job.attempt_file, outcome(1, "the loss became NaN"))
    assert read_state(job).reason == "the loss became NaN"
    forget_failure(job, claim(job))
    assert read_state(job).status == "waiting"
    assert not job.folder.exists()


def test_any_other_failed_run_keeps_its_checkpoints(tmp_path):
    job = job_in(tmp_path)
    trained(job, 40)
    write(job.attempt_file, outcome(1, "out of memory"))
    forget_failure(job, claim(job))
    assert (read_state(job).status, read_state(job).step) == ("waiting", 40)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempts": 1}'])
def test_damaged_files_hide_nothing(tmp_path, text):
    job = job_in(tmp_path)
    for path in (job.attempt_file, job.run_file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_state(job).status == "waiting"


def test_the_reason_is_the_runs_own_last_word(tmp_path):
    log = tmp_path / "log"
    log.write_text("=== attempt 1\nerror: old\n=== attempt 2\nstopped: out of memory\nnoise\n")
    assert failure_reason(log, 1) == "out of memory"
    log.write_text("Traceback\nValueError: odd\n\n")
    assert failure_reason(log, 1) == "ValueError: odd"
    assert failure_reason(tmp_path / "none", 3) == "exit code 3"
    assert failure_reason(log, -9) == "killed by SIGKILL: the machine may be out of memory"


def test_progress_counts_flops_and_shares_what_is_left_among_those_who_run(tmp_path):
    """Two run at 1000 tokens/s of 1e7 FLOPs each; the third waits at their rate."""
    jobs = [job_in(tmp_path, name) for name in ("a", "b", "c")]
    held = [claim(job) for job in jobs[:2]]
    for job, step in zip(jobs, (50, 100), strict=False):
        trained(job, step, 1000.0)
    whole = progress([read_state(job) for job in jobs])
    assert whole.counts == {"done": 0, "running": 2, "failed": 0, "waiting": 1}
    assert whole.share == pytest.approx(0.5)
    assert whole.seconds_left == pytest.approx((50 + 0 + 100) / 2)
    for descriptor in held:
        os.close(descriptor)
    assert progress([read_state(job_in(tmp_path, "d"))]).seconds_left is None


def test_the_manifest_keeps_every_job_and_orders_by_flops(tmp_path):
    from questtrain.sweep import read_sweep

    sweep, folder = read_sweep("fig3_lsq"), tmp_path / "fig3_lsq"
    assert read_manifest(folder) is None
    short, long = job_in(folder, "short", 1.0), job_in(folder, "long", 2.0)
    record_jobs(sweep, folder, [short])
    record_jobs(sweep, folder, [long])
    assert read_manifest(folder) == [long, short] == longest_first([short, long])
    content = json.loads((folder / "sweep.json").read_text())
    assert (content["name"], content["figure"]) == ("fig3_lsq", "fig3")
