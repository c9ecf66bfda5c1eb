"""The launchers' settings; their values are in ``conf/launcher/``."""

from __future__ import annotations

from dataclasses import dataclass, field

from questtrain.errors import UserError


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
    the command returns when Slurm has finished.
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


def check_local(config: LocalConfig) -> None:
    """UserError for a number that cannot be."""
    for key in ("workers", "runs_per_gpu", "threads"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"launcher.{key}={value} must be at least 1.")
