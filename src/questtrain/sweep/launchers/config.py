"""The launchers' settings; their values are in ``conf/launcher/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from questtrain.errors import UserError

OWN_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "time": "time",
    "nodes": "nodes",
    "gpus-per-node": "gpus_per_node",
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem_gb",
    "signal": "grace",
    "requeue": "requeue",
    "no-requeue": "requeue",
    "array": "array_parallelism",
}
"""Options of sbatch that a setting of the launcher gives."""

RESERVED = ("output", "error", "open-mode", "job-name", "wait", "parsable", "wrap", "test-only")
"""Options of sbatch that the launcher itself depends on."""


@dataclass
class LocalConfig:
    """A pool over this machine's GPUs, or its CPU cores where it has none.

    ``workers`` bounds the runs at a time; None: as many as ``gpus`` (None: all that are visible)
    hold, ``runs_per_gpu`` each (None: as many as fit into memory, at most four), or one for every
    ``threads`` cores.
    """

    kind: str = "local"
    workers: int | None = None
    gpus: list[int] | None = None
    runs_per_gpu: int | None = None
    threads: int = 1


@dataclass
class SlurmConfig:
    """One job array; what Slurm's ``sbatch`` calls the same. None leaves it to the cluster.

    ``time`` is minutes, or ``HH:MM:SS``; ``grace`` the seconds before its end at which a run saves
    and its job is requeued, ``requeue`` times at most. ``tasks_per_node``, the ranks of a run on a
    node, is one a GPU if None. ``setup`` are shell lines that run before the training. ``wait``:
    the command returns when Slurm has finished. ``sbatch`` are options of sbatch by their long
    names, for what has no setting here; a value of true gives an option that takes none.
    """

    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "24:00:00"
    nodes: int = 1
    gpus_per_node: int = 1
    tasks_per_node: int | None = None
    cpus_per_task: int = 8
    mem_gb: int | None = None
    array_parallelism: int = 256
    setup: list[str] = field(default_factory=list)
    requeue: int = 100
    grace: int = 120
    wait: bool = False
    sbatch: dict[str, Any] = field(default_factory=dict)


def check_local(config: LocalConfig) -> None:
    """UserError for a number that cannot be."""
    for key in ("workers", "runs_per_gpu", "threads"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"launcher.{key}={value} must be at least 1.")


def check_sbatch(options: Mapping[str, Any]) -> None:
    """UserError for what is no option of sbatch, or is the launcher's own."""
    for name, value in options.items():
        where = f"launcher.sbatch: {name}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"{where} is no long option of sbatch, such as wckey or mail-type.")
        if name in OWN_OPTIONS:
            raise UserError(f"{where} is launcher.{OWN_OPTIONS[name]}: set that instead.")
        if name in RESERVED:
            raise UserError(f"{where} is the launcher's own, and cannot be changed.")
        if value is False or (isinstance(value, str) and not value.isprintable()):
            raise UserError(f"{where}={value!r}: give text or a number, or true for a bare option.")
