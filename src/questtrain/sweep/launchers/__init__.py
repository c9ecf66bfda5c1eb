"""Where a sweep's runs train: this machine, or a Slurm cluster.

A launcher is one module here and one YAML file in ``conf/launcher/``, whose ``kind`` names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from questtrain.errors import unknown
from questtrain.sweep.job import Job
from questtrain.sweep.state import QueuedRun

KINDS = ("local", "slurm")


class Launcher(Protocol):
    """A dataclass of one kind's settings, which says what becomes of a sweep's runs."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise UserError for settings that cannot be: on this machine, or for these runs."""

    def run(self, jobs: Sequence[Job], folder: Path, command: str) -> int | None:
        """Train what is neither done nor failed in the sweep's folder, or hand it to a queue.

        ``command`` is the one to give again. Returns None where the runs are the queue's from now
        on; otherwise, when they have ended, the number of the signal that ended them, or 0.
        """

    @staticmethod
    def queued(folder: Path) -> Mapping[str, QueuedRun]:
        """Run name → where it is in the launcher's queue, by what lies in the sweep's folder."""


def launcher_class(kind: object) -> type[Launcher]:
    """The launcher of that ``kind``; UserError for an unknown one."""
    match kind:
        case "local":
            from questtrain.sweep.launchers.local import LocalLauncher

            return LocalLauncher
        case "slurm":
            from questtrain.sweep.launchers.slurm import SlurmLauncher

            return SlurmLauncher
    raise unknown("launcher.kind", kind, KINDS)


def queued_runs(folder: Path) -> dict[str, QueuedRun]:
    """Run name → where it is, in whatever queue a launcher has put it."""
    queues = (launcher_class(kind).queued(folder) for kind in KINDS)
    return {name: run for queue in queues for name, run in queue.items()}
