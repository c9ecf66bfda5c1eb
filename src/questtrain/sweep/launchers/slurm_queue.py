"""Which runs of a sweep wait or run in Slurm: what was submitted, as squeue sees it.

::

    runs_dir/SWEEP/slurm.json           run → the Slurm job or array task that it was last given
    runs_dir/SWEEP/.sweep/slurm/        what submitit writes: job scripts, pickles, its own logs
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from questtrain.errors import UserError
from questtrain.store.files import write_json
from questtrain.store.json_file import read_json
from questtrain.sweep.state import QueuedRun

SUBMISSIONS = "slurm.json"

SECONDS_BETWEEN_QUESTIONS = 10
"""How often squeue is asked at most: the controller serves a whole cluster."""


def read_submissions(sweep_folder: Path) -> dict[str, str]:
    """Run name → task id, as submitted last; UserError if the file is damaged."""
    try:
        return read_json(sweep_folder / SUBMISSIONS, dict[str, str])
    except FileNotFoundError:
        return {}


def record_submissions(sweep_folder: Path, task_ids: Mapping[str, str]) -> None:
    """Add what was submitted."""
    write_json(sweep_folder / SUBMISSIONS, {**read_submissions(sweep_folder), **task_ids})


def tasks_in_queue(sweep_folder: Path, fresh: bool = False) -> dict[str, QueuedRun]:
    """Run name → its job (``17``) or array task (``17_3``), where Slurm has not finished with it.
    At most ten seconds old, or ``fresh``.

    Empty where nothing was submitted or this machine has no Slurm; UserError if squeue fails.
    """
    task_ids = read_submissions(sweep_folder)
    if not task_ids or shutil.which("squeue") is None:
        return {}
    moment = time.monotonic_ns() if fresh else int(time.monotonic() / SECONDS_BETWEEN_QUESTIONS)
    states = _states(moment)
    return {
        name: QueuedRun(states[t] == "RUNNING", f"Slurm job {t}: {states[t].lower()}")
        for name, t in task_ids.items()
        if t in states
    }


@lru_cache(maxsize=1)
def _states(moment: int) -> dict[str, str]:
    """Task id → state (``PENDING``, ``RUNNING``, ``COMPLETING``, …) of all of this user's jobs, one
    line an array task."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"squeue failed: {' '.join(result.stderr.split())}")
    pairs = ((line.split()[0], line.split()[1]) for line in result.stdout.splitlines())
    return dict(pairs)
