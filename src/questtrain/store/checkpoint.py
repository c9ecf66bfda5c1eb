"""Checkpoints: ``checkpoints/step_00001000/`` with weights, optimizer state and checksums.

A folder appears under its name only when it is complete, and ``checkpoint.json`` holds the
SHA-256 of each file, so that damage is found before anything is loaded. It goes the same way when
it is removed: whole, or not at all.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from questtrain.errors import ReadFailed, UserError
from questtrain.store.checkpoint_folders import checkpoint_folders, step_of
from questtrain.store.files import (
    publish_folder,
    remove_folder,
    sha256_of,
    write_json,
    write_patiently,
)
from questtrain.store.json_file import Count, DamagedJson, NotNegative, read_json

log = logging.getLogger(__name__)

_STATE = "checkpoint.json"
_TENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written; ``weights_sha256`` is of the file of
    weights."""

    folder: Path
    step: int
    wall_seconds: float
    weights_sha256: str

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part, ``model``, ``optimizer`` or ``losses``; UserError where there is
        none."""
        file = self.folder / f"{part}{_TENSORS}"
        if not file.is_file():
            raise UserError(f"checkpoint {self.folder} holds no {file.name}.")
        return load_file(file)

    def has(self, part: str) -> bool:
        """Whether it was saved with this part, too: not all runs have ``losses``."""
        return (self.folder / f"{part}{_TENSORS}").is_file()

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights in place; UserError if they are not this model's."""
        try:
            model.load_state_dict(self.tensors("model"))
        except RuntimeError as error:
            raise UserError(f"checkpoint {self.folder} is of another model: {error}") from error


def save_checkpoint(
    run: Path,
    step: int,
    parts: dict[str, dict[str, Tensor]],
    wall_seconds: float,
    keep: int,
    known_intact: Collection[int] = (),
    keep_at_most: int | None = None,
) -> Path:
    """Write ``parts`` (``model``, ``optimizer``, …) as they are after ``step`` updates.

    Afterwards, what is older than the ``keep`` newest intact checkpoints is removed, but not the
    newest intact one of at most the step ``keep_at_most``; those of the steps ``known_intact`` need
    not be read for that. A file system that fails for a moment is written to again, from the
    beginning; then, and where the disk refuses it, WriteFailed, with nothing left of this one.
    """
    parent = run / "checkpoints"
    final = parent / f"step_{step:08d}"
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    # What a killed process left half written or half removed; the run's lock says that nobody is at
    # it now.
    for path in parent.glob(".step_*.tmp"):
        shutil.rmtree(path)
    needed = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())

    def write() -> None:
        try:
            _write_folder(temporary, step, parts, wall_seconds)
            publish_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    write_patiently(final, write, needed)
    _remove_older(run, step, keep, {*known_intact, step}, keep_at_most)
    return final


def _write_folder(
    folder: Path, step: int, parts: dict[str, dict[str, Tensor]], wall_seconds: float
) -> None:
    folder.mkdir(parents=True)
    checksums = {}
    for part, tensors in parts.items():
        file = folder / f"{part}{_TENSORS}"
        _save_tensors(tensors, file)
        checksums[file.name] = sha256_of(file)
    state = {"step": step, "wall_seconds": wall_seconds, "sha256": checksums}
    write_json(folder / _STATE, state)


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """OSError where the disk refuses: safetensors says so in words only."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(file)) from error


def _remove_older(
    run: Path, step: int, keep: int, known_intact: Collection[int], at_most: int | None
) -> None:
    """Remove what is older than the ``keep`` newest intact checkpoints, of which ``step`` is one,
    and is not the newest intact one up to the step ``at_most``: a damaged one, newer or between
    them, takes nobody's place."""
    intact = 0
    for folder in reversed(checkpoint_folders(run)):
        number = step_of(folder)
        is_sought = at_most is not None and number <= at_most
        if intact < keep or is_sought:
            if number in known_intact or _is_intact(folder):
                intact += 1
                at_most = None if is_sought else at_most
        elif number != step:
            remove_folder(folder)


def _is_intact(folder: Path) -> bool:
    try:
        open_checkpoint(folder)
    except UserError:
        return False
    return True


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint, its record and every file; UserError names what is damaged."""
    damaged = f"checkpoint {folder} is damaged"
    try:
        state = read_json(folder / _STATE, _State)
    except FileNotFoundError as error:
        raise UserError(f"{damaged}: {_STATE} is missing.") from error
    except DamagedJson as error:
        raise UserError(f"{damaged}: {_STATE}: {error.problem}.") from error
    problem = next(state.problems(folder), None)
    if problem is not None:
        raise UserError(f"{damaged}: {problem}.")
    weights = state.sha256[f"model{_TENSORS}"]
    return Checkpoint(folder, state.step, state.wall_seconds, weights)


@dataclass(frozen=True)
class _State:
    """``checkpoint.json``."""

    step: Count
    wall_seconds: NotNegative
    sha256: dict[str, str]

    def problems(self, folder: Path) -> Iterator[str]:
        """What is wrong with the folder's files, cheap tests first."""
        if self.step != step_of(folder):
            yield f"{_STATE}: 'step' holds {self.step}, and the folder is of step {step_of(folder)}"
        present = {file.name for file in folder.iterdir()} - {_STATE}
        for name in sorted(self.sha256.keys() - present):
            yield f"{name} is missing"
        for name in sorted(present - self.sha256.keys()):
            yield f"{_STATE} holds no checksum of {name}"
        if f"model{_TENSORS}" not in present:
            yield f"model{_TENSORS} is missing"
        for name, expected in self.sha256.items():
            file = folder / name
            if sha256_of(file) != expected:
                size = file.stat().st_size
                yield f"{name} does not match its checksum ({size:,} bytes)"
            elif name.endswith(_TENSORS) and (problem := _no_tensors(file)):
                yield f"{name} holds no tensors ({problem}), though its checksum is right"


def _no_tensors(file: Path) -> str | None:
    """Why a file is none of safetensors; None where it is one. Only its header is read."""
    try:
        with safe_open(file, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return str(error)


def checkpoint_at(run: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; UserError if there is none, or if it is damaged."""
    return open_checkpoint(checkpoint_folder(run, step))


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of one step lies; UserError if there is none."""
    folders = {step_of(folder): folder for folder in checkpoint_folders(run)}
    if step not in folders:
        raise UserError(f"{run} holds no checkpoint of step {step}, only {list(folders)}.")
    return folders[step]


def last_good_checkpoint(run: Path) -> str:
    """The newest intact checkpoint, in words: ``step 8 (runs/NAME/checkpoints/…)``, or ``none``."""
    try:
        checkpoint = latest_checkpoint(run)
    except UserError:
        return "none that is intact"
    except ReadFailed:
        return "not known, because none can be read"
    return "none" if checkpoint is None else f"step {checkpoint.step} ({checkpoint.folder})"


def latest_checkpoint(run: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint, of those up to the step ``at_most``; damaged ones are named and
    passed over.

    None when the run has none at all; UserError when every one is damaged.
    """
    problems = []
    for folder in reversed(checkpoint_folders(run)):
        if at_most is not None and step_of(folder) > at_most:
            continue
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
