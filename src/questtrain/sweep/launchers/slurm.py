"""The Slurm launcher: one job array of all runs still to do, through submitit.

In the cluster every task of a job runs `SlurmRun` (`questtrain.sweep.launchers.slurm_task`).
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from questtrain.config.ranges import SIZE, Choices, Interval
from questtrain.errors import UserError
from questtrain.process.signals import StopSignal
from questtrain.store.files import locked
from questtrain.sweep.attempt import is_claimed
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.launchers.slurm_queue import record_submissions, tasks_in_queue
from questtrain.sweep.launchers.slurm_task import SlurmRun
from questtrain.sweep.state import QueuedRun, ended

SECONDS_BETWEEN_QUESTIONS = 2.0
"""How often squeue is asked with launcher.wait=true."""

OWN_NAMES = {
    "ntasks-per-node": "tasks_per_node",
    "mem": "mem_gb",
    "signal": "grace",
    "no-requeue": "requeue",
    "array": "array_parallelism",
}
"""Options of sbatch that a setting gives by another name than theirs."""

RESERVED = ("output", "error", "open-mode", "job-name", "wait", "parsable", "wrap", "test-only")
"""Options of sbatch that the launcher itself depends on."""


@dataclass
class SlurmLauncher:
    """One job array; settings are what ``sbatch`` calls the same. None leaves it to the cluster.

    ``time`` is minutes, or ``HH:MM:SS``; ``grace`` the seconds before its end at which a run saves
    and its job is requeued, ``requeue`` times at most. ``tasks_per_node``, the ranks of a run on a
    node, is one a GPU if None. ``setup`` are shell lines that run before the training. ``wait``:
    the command returns when Slurm has finished. ``sbatch`` are options of sbatch by their long
    names, for what has no setting here; a value of true gives an option that takes none.
    """

    kind: Annotated[str, Choices(("slurm",))] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "24:00:00"
    nodes: Annotated[int, Interval(SIZE)] = 1
    gpus_per_node: Annotated[int, Interval("[0, 2^31)")] = 1
    tasks_per_node: Annotated[int | None, Interval(SIZE)] = None
    cpus_per_task: Annotated[int, Interval(SIZE)] = 8
    mem_gb: Annotated[int | None, Interval(SIZE)] = None
    array_parallelism: Annotated[int, Interval(SIZE)] = 256
    setup: list[str] = field(default_factory=list)
    requeue: Annotated[int, Interval("[0, 2^31)")] = 100
    grace: Annotated[int, Interval(SIZE)] = 120
    wait: bool = False
    sbatch: dict[str, Any] = field(default_factory=dict)

    def check(self, jobs: Sequence[Job]) -> None:
        """UserError for a time that is none, an option of sbatch that cannot be given, a machine
        without Slurm or submitit."""
        minutes(self.time)
        check_sbatch(self.sbatch)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "launcher=slurm: this machine has no sbatch and srun; start the sweep on the"
                " cluster's login node, or choose launcher=local."
            )
        if find_spec("submitit") is None:
            raise UserError(
                "launcher=slurm needs submitit: pip install '.[slurm]' in the folder of"
                " questtrain's sources."
            )

    def run(self, jobs: Sequence[Job], folder: Path, command: str) -> int | None:
        """Submit what is neither done, failed, running nor queued, longest first; None, or 0 when
        no run is queued any more, with ``wait``. UserError for what Slurm refuses."""
        # One submission at a time: the second sees what the first has put into the queue.
        with locked(folder / ".sweep" / "slurm.lock"):
            queued = tasks_in_queue(folder, fresh=True)
            open_jobs = [job for job in longest_first(jobs) if ended(job) is None]
            waiting = [job for job in open_jobs if job.name not in queued and not is_claimed(job)]
            if waiting:
                task_ids = _submit(waiting, folder, self)
                record_submissions(folder, task_ids)
                _announce(task_ids, len(open_jobs) - len(waiting), self, command)
            else:
                count = f"{len(open_jobs)} of {len(jobs)} runs"
                _say(f"nothing to submit: {count} are queued or running.")
        if not self.wait:
            return None
        _wait(folder)
        return 0

    @staticmethod
    def queued(folder: Path) -> Mapping[str, QueuedRun]:
        """The sweep's runs that Slurm has not finished with, at most ten seconds ago."""
        return tasks_in_queue(folder)


def check_sbatch(options: Mapping[str, Any]) -> None:
    """UserError for what is no option of sbatch, or is the launcher's own."""
    for name, value in options.items():
        where = f"launcher.sbatch: {name}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"{where} is no long option of sbatch, such as wckey or mail-type.")
        setting = OWN_NAMES.get(name, name.replace("-", "_"))
        if setting != "wait" and setting in SlurmLauncher.__dataclass_fields__:
            raise UserError(f"{where} is launcher.{setting}: set that instead.")
        if name in RESERVED:
            raise UserError(f"{where} is the launcher's own, and cannot be changed.")
        if value is False or (isinstance(value, str) and not value.isprintable()):
            raise UserError(f"{where}={value!r}: give text or a number, or true for a bare option.")


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


def _submit(jobs: Sequence[Job], folder: Path, launcher: SlurmLauncher) -> dict[str, str]:
    """Hand the jobs to sbatch as one array; run name → task id."""
    import submitit

    place = folder / ".sweep" / "slurm"
    executor = submitit.SlurmExecutor(place, max_num_timeout=launcher.requeue)
    executor.update_parameters(**_parameters(folder.name, launcher))
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


def _parameters(name: str, launcher: SlurmLauncher) -> dict[str, Any]:
    """submitit's names for ours; what is None is left to the cluster."""
    tasks = launcher.tasks_per_node or max(1, launcher.gpus_per_node)
    parameters = {
        "job_name": f"questtrain-{name}",
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "time": minutes(launcher.time),
        "nodes": launcher.nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": launcher.gpus_per_node or None,
        "cpus_per_task": launcher.cpus_per_task,
        "mem": None if launcher.mem_gb is None else f"{launcher.mem_gb}GB",
        "signal_delay_s": launcher.grace,
        "array_parallelism": launcher.array_parallelism,
        "setup": launcher.setup or None,
        "additional_parameters": {"requeue": True, **launcher.sbatch},
        "srun_args": ["--kill-on-bad-exit=1"],
    }
    given = {key: value for key, value in parameters.items() if value is not None}
    return {**given, "wckey": None}  # submitit's own, "submitit", is unknown to most clusters


def _announce(task_ids: dict[str, str], others: int, launcher: SlurmLauncher, command: str) -> None:
    (array,) = {task_id.split("_")[0] for task_id in task_ids.values()}
    runs = "1 run" if len(task_ids) == 1 else f"{len(task_ids)} runs"
    elsewhere = f" ({others} more are queued or running)" if others else ""
    _say(
        f"submitted {runs} as Slurm job {array}, {launcher.array_parallelism} at a time at most"
        f"{elsewhere}\n  follow: {command} --status\n  cancel: scancel {array}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _wait(folder: Path) -> None:
    """Until Slurm has none of the sweep's tasks left; a StopSignal that ends the waiting goes on,
    with nothing more to say."""
    try:
        while tasks_in_queue(folder, fresh=True):
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
    except StopSignal as stop:
        _say("no longer waiting; the jobs stay in Slurm's queue.")
        stop.is_spokesman = False
        raise
