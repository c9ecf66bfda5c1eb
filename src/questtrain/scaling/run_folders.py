"""Which run folders a user means by the paths given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from questtrain.errors import UserError
from questtrain.store.files import no_such_folder

OF_A_RUN = ("checkpoints", "diagnostics", "evaluations", "figures", "wandb")
"""Folders that a run keeps; they can hold many files, and no runs."""


def find_runs(paths: Sequence[str], nested: bool = False) -> list[Path]:
    """The run folders that ``paths`` name, each once; a folder of runs stands for those directly
    in it, and where ``nested``, any folder for all at any depth below it (the sweeps in ``runs/``,
    runs named ``exp/seed1`` in the folder of ``exp``)."""
    if not paths:
        raise UserError("no runs given: name run folders, or a folder of runs.")
    runs = [run for path in paths for run in _runs_at(Path(path).expanduser(), nested)]
    return list({run.resolve(): run for run in runs}.values())


def _runs_at(folder: Path, nested: bool) -> list[Path]:
    if not folder.exists():
        raise no_such_folder(str(folder), folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file: name run folders, a folder of runs, or a table (.csv, .jsonl)."
        )
    if nested:
        inside = _runs_below(folder)
    elif is_run(folder):
        inside = [folder]
    else:
        inside = [path for path in _folders_in(folder) if is_run(path)]
    if not inside:
        raise UserError(f"{folder} is not a run (it holds no config.yaml), nor a folder of runs.")
    return inside


def _runs_below(folder: Path) -> list[Path]:
    """A run before the runs in its folder; a folder that links lead to twice counts once."""
    found, seen = list[Path](), set[Path]()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        own: tuple[str, ...] = ()
        if is_run(here):
            found.append(here)
            own = OF_A_RUN
        waiting += [path for path in reversed(_folders_in(here)) if path.name not in own]
    return found


def _folders_in(folder: Path) -> list[Path]:
    """In the order of their names, hidden ones only where they are runs; none where the folder may
    not be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    folders = [folder / name for name in names]
    return [path for path in folders if not path.name.startswith(".") or is_run(path)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return any((folder / name).exists() for name in ("config.yaml", "run.json"))
