"""The folders of a run's checkpoints, by their names alone: no torch."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"step_(\d{8,})")


def checkpoint_folders(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, verified or not."""
    parent = run / "checkpoints"
    if not parent.is_dir():
        return []
    folders = [path for path in parent.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step_"))
