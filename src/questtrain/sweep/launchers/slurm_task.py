"""What runs inside a Slurm job: a task that starts ``questtrain train`` as a child.

With several tasks a run, each child is a rank of torch.distributed. When Slurm wants the job back
(its time is nearly over, or it is preempted) the child saves a checkpoint first; then submitit's
own handler puts the job into the queue again, and the same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from questtrain.sweep.attempt import STOPPED, TRAIN, Attempt, claim
from questtrain.sweep.job import Job
from questtrain.sweep.state import ended

if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_LOOKS = 0.2


class RunFailed(Exception):
    """A training process ended with an error; Slurm shall show its job as failed."""


class SlurmRun:
    """What submitit calls in each task of a job."""

    def __call__(self, job: Job) -> None:
        if ended(job) == "done":
            return
        if int(os.environ["SLURM_PROCID"]) == 0:
            _lead(job)
        else:
            _follow(job)

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """submitit asks this for what to requeue: the same; the run's state is in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _lead(job: Job) -> None:
    """Rank 0: claim the run, train it, record how it ended; requeued if Slurm wants the job back.

    RunFailed where training failed or another process holds the run.
    """
    descriptor = claim(job)
    if descriptor is None:
        raise RunFailed(f"{job.name} is being trained by another process")
    with _noting_signals() as noted:
        attempt = Attempt(job, descriptor, environment=_torch_environment())
        _until_ended(attempt.process, noted)
        outcome = attempt.finish()
    assert outcome is not None
    if noted.signals and outcome.exit_code in STOPPED and _job_state() == "RUNNING":
        signal.raise_signal(signal.SIGUSR2)  # to submitit, which requeues the job and exits
    if outcome.failed:
        raise RunFailed(outcome.reason)


def _follow(job: Job) -> None:
    """Any other rank: train, in the same log. How the run ended is rank 0's to say."""
    with job.log_file.open("a", encoding="utf-8") as log, _noting_signals() as noted:
        process = subprocess.Popen(
            [*TRAIN, *job.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_torch_environment()},
        )
        _until_ended(process, noted)


@dataclass
class _Noted:
    signals: int = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1


@contextmanager
def _noting_signals() -> Iterator[_Noted]:
    """SIGTERM and SIGUSR2 are counted, and then again submitit's.

    Slurm sends both to every process of the job. A child that has hardly begun would die of
    SIGUSR2, so it is born with it blocked; only the parent hears it, and passes on SIGTERM.
    """
    noted = _Noted()
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    handlers = {number: signal.signal(number, noted.note) for number in numbers}
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        yield noted
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _until_ended(process: subprocess.Popen[bytes], noted: _Noted) -> None:
    """Wait for the child, which is asked to save and stop when a signal has been noted."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    asked = False
    while process.poll() is None:
        if noted.signals and not asked:
            process.send_signal(signal.SIGTERM)
            asked = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _torch_environment() -> dict[str, str]:
    """What torch.distributed wants of each rank, read off the Slurm job's variables."""
    from submitit.helpers import TorchDistributedEnvironment

    world = TorchDistributedEnvironment()
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_RANK": str(world.local_rank),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
    }


def _job_state() -> str:
    """The state of this job: RUNNING, or what it has become by a scancel or a requeue."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
