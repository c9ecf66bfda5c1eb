"""Checkpoints: ``checkpoints/step_00001000/`` with weights, optimizer state and checksums.

A folder appears under its name only when it is complete, and ``checkpoint.json`` holds the
SHA-256 of each file, so that damage is found before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from questtrain.errors import UserError
from questtrain.store.files import publish_folder, sha256_of, write_json

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d+)")
_STATE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written."""

    folder: Path
    step: int
    wall_seconds: float

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part: ``model`` or ``optimizer``."""
        return load_file(self.folder / f"{part}.safetensors")

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights in place; UserError if they are not this model's."""
        try:
            model.load_state_dict(self.tensors("model"))
        except RuntimeError as error:
            raise UserError(f"checkpoint {self.folder} is of another model: {error}") from error


def save_checkpoint(
    run: Path, step: int, parts: dict[str, dict[str, Tensor]], wall_seconds: float, keep: int
) -> Path:
    """Write ``parts`` (``model``, ``optimizer``) as they are after ``step`` updates.

    All but the ``keep`` newest checkpoints are removed afterwards.
    """
    parent = run / "checkpoints"
    final = parent / f"step_{step:08d}"
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    _remove_abandoned(parent)
    temporary.mkdir(parents=True)
    checksums = {}
    for part, tensors in parts.items():
        file = temporary / f"{part}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        checksums[file.name] = sha256_of(file)
    state = {"step": step, "wall_seconds": wall_seconds, "sha256": checksums}
    write_json(temporary / _STATE, state)
    publish_folder(temporary, final)
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoint_folders(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first, verified or not."""
    parent = run / "checkpoints"
    if not parent.is_dir():
        return []
    folders = [path for path in parent.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step_"))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint's files; UserError names the damaged one."""
    try:
        state = json.loads((folder / _STATE).read_text())
        step, wall_seconds, checksums = state["step"], state["wall_seconds"], state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is damaged: {_STATE}: {error}.") from error
    for name, expected in checksums.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing.")
        if sha256_of(file) != expected:
            raise UserError(
                f"checkpoint {folder} is damaged: {name} does not match its checksum"
                f" ({file.stat().st_size:,} bytes)."
            )
    return Checkpoint(folder, step, wall_seconds)


def checkpoint_at(run: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; UserError if there is none, or if it is damaged."""
    folders = {step_of(folder): folder for folder in checkpoint_folders(run)}
    if step not in folders:
        raise UserError(f"{run} holds no checkpoint of step {step}, only {list(folders)}.")
    return open_checkpoint(folders[step])


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest intact checkpoint; damaged ones are named and passed over.

    None when the run has none at all; UserError when every one is damaged.
    """
    problems = []
    for folder in reversed(checkpoint_folders(run)):
        try:
            checkpoint = open_checkpoint(folder)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("%s Using the previous one, step %d.", problem, checkpoint.step)
        return checkpoint
    if problems:
        raise UserError("\n".join(problems) + "\nNo intact checkpoint is left in this run.")
    return None


def _remove_abandoned(parent: Path) -> None:
    """Temporary folders of a killed process; the run's lock says that nobody writes them now."""
    for path in parent.glob(".step_*.tmp"):
        shutil.rmtree(path)
