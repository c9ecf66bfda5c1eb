"""A run's folder: made, claimed by one process, and compared with what it already holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from questtrain.config import TrainConfig, is_operational
from questtrain.config.loading import flatten, read_config
from questtrain.data import TokenDataset
from questtrain.data.identity import read_identity
from questtrain.errors import UserError, WriteFailed
from questtrain.store.checkpoint import checkpoint_folders, last_good_checkpoint
from questtrain.store.files import write_text, writing
from questtrain.train.run_data import data_differences, keep_data

DATA_PLACES = ("data.files", "data.validation_files", "data.tokenizer")
"""Settings that say where data lies."""


def run_folder(config: TrainConfig) -> Path:
    """``runs_dir/name``."""
    return Path(config.runs_dir).expanduser() / str(config.name)


@contextmanager
def claim_run(config: TrainConfig) -> Iterator[Path]:
    """The folder ``runs_dir/name``, writable and held by this process alone.

    UserError if it cannot be written or is being trained by another process. A folder in which
    nothing was written is removed again.
    """
    folder = run_folder(config)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except WriteFailed:
        raise
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"run folder {folder} is not writable; choose another runs_dir=….")
    lock = FileLock(folder / ".lock")
    try:
        with writing(folder / ".lock"):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is training in {folder}.") from error
    except WriteFailed:
        raise
    except OSError as error:
        raise UserError(f"run folder {folder} is not writable: {error.strerror}.") from error
    try:
        yield folder
    finally:
        lock.release()
        if [file.name for file in folder.iterdir()] == [".lock"]:
            shutil.rmtree(folder, ignore_errors=True)


def settle_run(folder: Path, config: TrainConfig, dataset: TokenDataset) -> None:
    """Make the folder this run's: its ``config.yaml``, its data's identity and its tokenizer.

    UserError, and nothing is written, if the folder holds a run of another configuration or of
    other data.
    """
    path = folder / "config.yaml"
    if path.exists():
        if config.resume == "never":
            raise UserError(
                f"{folder} already holds a run and resume=never was asked for:"
                " choose another name=…, or delete the folder."
            )
        _check_same(folder, read_config(path), config, dataset)
    elif config.resume == "must" and not checkpoint_folders(folder):
        raise UserError(f"resume=must, but {folder} holds no run to resume.")
    keep_data(folder, dataset)
    write_text(path, yaml.safe_dump(asdict(config), sort_keys=False))


def _check_same(folder: Path, old: TrainConfig, new: TrainConfig, dataset: TokenDataset) -> None:
    # Where the data's content is known, it may have moved: only other data is another run.
    places = DATA_PLACES if read_identity(folder) is not None else ()
    settings = _differences(asdict(old), asdict(new), ignored=places)
    data = data_differences(folder, dataset)
    if not settings and not data:
        return
    what = "another configuration" if settings else "other data"
    advice = "ask for the settings of the folder" if settings else "give it the data it began with"
    raise UserError(
        f"{folder} holds a run with {what}:\n"
        + "\n".join([*settings, *data])
        + f"\nGive this run another name=…, or {advice}."
    )


def _differences(
    old: dict[str, Any], new: dict[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    before, after = flatten(old), flatten(new)
    return [
        f"  {key}: {before.get(key)!r} in the folder, {after.get(key)!r} asked for"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not is_operational(key) and key not in ignored
    ]


@contextmanager
def saying_what_is_kept(folder: Path) -> Iterator[None]:
    """Ends a WriteFailed's message with the last good checkpoint and what to do."""
    try:
        yield
    except WriteFailed as error:
        raise error.advising(
            f"Last good checkpoint: {last_good_checkpoint(folder)}."
            " Make room, and the same command goes on."
        ) from error
