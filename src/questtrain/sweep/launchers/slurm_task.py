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
from typing import TYPE_CHECKING

from questtrain.process.signals import StopRequests, on_stop_signals
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
    with _noting_signals() as asked:
        attempt = Attempt(job, descriptor, environment=_torch_environment())
        _until_ended(attempt.process, asked)
        outcome = attempt.finish()
    assert outcome is not None
    if asked.number and outcome.exit_code in STOPPED and _job_state() == "RUNNING":
        signal.raise_signal(signal.SIGUSR2)  # to submitit, which requeues the job and exits
    if outcome.failed:
        raise RunFailed(outcome.reason)


def _follow(job: Job) -> None:
    """Any other rank: train, in the same log. How the run ended is rank 0's to say."""
    with job.log_file.open("a", encoding="utf-8") as log, _noting_signals() as asked:
        process = subprocess.Popen(
            [*TRAIN, *job.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_torch_environment()},
        )
        _until_ended(process, asked)


@contextmanager
def _noting_signals() -> Iterator[StopRequests]:
    """Stop signals are noted, and after the block again submitit's.

    Slurm sends its own to every process of the job. A child that has hardly begun would die of
    SIGUSR2, so it is born with it blocked; only the parent hears it, and passes on SIGTERM.
    """
    asked = StopRequests()
    with on_stop_signals(asked.note):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            yield asked
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


def _until_ended(process: subprocess.Popen[bytes], asked: StopRequests) -> None:
    """Wait for the child, which is told to save and stop when a signal has been noted."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    told = False
    while process.poll() is None:
        if asked.number and not told:
            process.send_signal(signal.SIGTERM)
            told = True
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
