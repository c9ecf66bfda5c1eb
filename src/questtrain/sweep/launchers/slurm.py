"""The Slurm launcher: one job array of all runs still to do, through submitit.

In the cluster every task of a job runs `SlurmRun`. It starts ``questtrain train`` as a child; with
several tasks a run, each child is a rank of torch.distributed. When Slurm wants the job back (its
time is nearly over, or it is preempted) the child saves a checkpoint first; then submitit's own
handler puts the job into the queue again, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from questtrain.errors import UserError
from questtrain.process.signals import StopSignal
from questtrain.sweep.attempt import STOPPED, TRAIN, Attempt, claim, is_claimed
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.launchers.config import SlurmConfig, check_sbatch
from questtrain.sweep.slurm_queue import record_submissions, tasks_in_queue
from questtrain.sweep.state import ended

if TYPE_CHECKING:
    import submitit

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_QUESTIONS = 2.0
"""How often squeue is asked with launcher.wait=true."""


def run_slurm(jobs: Sequence[Job], folder: Path, config: SlurmConfig, command: str) -> int:
    """Submit what is neither done, failed, running nor queued, longest first.

    With ``launcher.wait`` it returns when no run is queued any more, or the number of the signal
    that ended the waiting (the jobs stay in the queue); else 0 at once. UserError for bad settings
    and for what Slurm refuses.
    """
    check_slurm(config)
    with _only_submitter(folder):
        queued = tasks_in_queue(folder, fresh=True)
        open_jobs = [job for job in longest_first(jobs) if ended(job) is None]
        waiting = [job for job in open_jobs if job.name not in queued and not is_claimed(job)]
        if waiting:
            task_ids = _submit(waiting, folder, config)
            record_submissions(folder, task_ids)
            _announce(task_ids, len(open_jobs) - len(waiting), config, command)
        else:
            _say(f"nothing to submit: {len(open_jobs)} of {len(jobs)} runs are queued or running.")
    return _wait(folder) if config.wait else 0


def check_slurm(config: SlurmConfig) -> None:
    """UserError for a number that cannot be, a time that is none, a machine without Slurm or
    submitit."""
    least = {"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "array_parallelism": 1}
    for key, minimum in {**least, "requeue": 0, "grace": 1}.items():
        value = getattr(config, key)
        if value < minimum:
            raise UserError(f"launcher.{key}={value} must be at least {minimum}.")
    for key in ("tasks_per_node", "mem_gb"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"launcher.{key}={value} must be at least 1.")
    minutes(config.time)
    check_sbatch(config.sbatch)
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "launcher=slurm: this machine has no sbatch and srun; start the sweep on the cluster's"
            " login node, or choose launcher=local."
        )
    if find_spec("submitit") is None:
        raise UserError("launcher=slurm needs submitit: pip install 'questtrain[slurm]'.")


def minutes(text: str) -> int:
    """Slurm's ``MM``, ``HH:MM:SS``, ``D-HH:MM:SS`` in minutes, rounded up; UserError otherwise."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+))", text)
    if match is None or not int(re.sub(r"\D", "", text)):
        raise UserError(
            f"launcher.time={text!r} is no time: give minutes (90), HH:MM:SS (01:30:00) or"
            " D-HH:MM:SS (2-00:00:00)."
        )
    days, hours, mins, seconds, plain = (int(group or 0) for group in match.groups())
    return plain or -(-(((days * 24 + hours) * 60 + mins) * 60 + seconds) // 60)


def _submit(jobs: Sequence[Job], folder: Path, config: SlurmConfig) -> dict[str, str]:
    """Hand the jobs to sbatch as one array; run name → task id."""
    import submitit

    place = folder / ".sweep" / "slurm"
    executor = submitit.SlurmExecutor(place, max_num_timeout=config.requeue)
    executor.update_parameters(**_parameters(folder.name, config))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            submitted = executor.map_array(SlurmRun(), jobs)
    except (RuntimeError, OSError) as error:
        message = " ".join((str(error) or said.getvalue()).split())
        raise UserError(f"Slurm refused the jobs: {message.removeprefix('sbatch: error: ')}") from (
            error
        )
    return {job.name: task.job_id for job, task in zip(jobs, submitted, strict=True)}


def _parameters(name: str, config: SlurmConfig) -> dict[str, Any]:
    """submitit's names for ours; what is None is left to the cluster."""
    tasks = config.tasks_per_node or max(1, config.gpus_per_node)
    parameters = {
        "job_name": f"questtrain-{name}",
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "time": minutes(config.time),
        "nodes": config.nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": config.gpus_per_node or None,
        "cpus_per_task": config.cpus_per_task,
        "mem": None if config.mem_gb is None else f"{config.mem_gb}GB",
        "signal_delay_s": config.grace,
        "array_parallelism": config.array_parallelism,
        "setup": config.setup or None,
        "additional_parameters": {"requeue": True, **config.sbatch},
        "srun_args": ["--kill-on-bad-exit=1"],
    }
    given = {key: value for key, value in parameters.items() if value is not None}
    return {**given, "wckey": None}  # submitit's own, "submitit", is unknown to most clusters


def _announce(task_ids: dict[str, str], others: int, config: SlurmConfig, command: str) -> None:
    (array,) = {task_id.split("_")[0] for task_id in task_ids.values()}
    runs = "1 run" if len(task_ids) == 1 else f"{len(task_ids)} runs"
    elsewhere = f" ({others} more are queued or running)" if others else ""
    _say(
        f"submitted {runs} as Slurm job {array}, {config.array_parallelism} at a time at most"
        f"{elsewhere}\n  follow: {command} --status\n  cancel: scancel {array}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _only_submitter(folder: Path) -> Iterator[None]:
    """One submission at a time, so that the second sees what the first has put into the queue."""
    with (folder / ".sweep" / "slurm.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait(folder: Path) -> int:
    """Until Slurm has none of the sweep's tasks left; the number of the signal that ended it."""
    try:
        while tasks_in_queue(folder, fresh=True):
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
    except StopSignal as stop:
        _say("no longer waiting; the jobs stay in Slurm's queue.")
        return stop.number
    return 0


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
