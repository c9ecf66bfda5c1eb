"""Which run folders a user means by the paths given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from questtrain.errors import UserError
from questtrain.store.files import no_such_folder


def find_runs(paths: Sequence[str], nested: bool = False) -> list[Path]:
    """The run folders that ``paths`` name, each once; a folder of runs stands for those directly
    in it, and where ``nested``, for those one level deeper too (the sweeps in ``runs/``)."""
    if not paths:
        raise UserError("no runs given: name run folders, or a folder of runs.")
    runs = [run for path in paths for run in _runs_at(Path(path).expanduser(), nested)]
    return list({run.resolve(): run for run in runs}.values())


def _runs_at(folder: Path, nested: bool) -> list[Path]:
    if not folder.exists():
        raise no_such_folder(str(folder), folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name run folders, or a folder of runs.")
    inside = _runs_in(folder, depth=2 if nested else 1)
    if not inside:
        raise UserError(f"{folder} is not a run (it holds no config.yaml), nor a folder of runs.")
    return inside


def _runs_in(folder: Path, depth: int) -> list[Path]:
    if is_run(folder):
        return [folder]
    if not depth:
        return []
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    return [run for inner in folders for run in _runs_in(inner, depth - 1)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return any((folder / name).exists() for name in ("config.yaml", "run.json"))
