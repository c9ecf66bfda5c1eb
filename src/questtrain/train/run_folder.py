"""A run's folder: made, claimed by one process, and compared with what it already holds: a run goes
on with the settings and the data that it began with, or not."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml

from questtrain.config import TrainConfig, is_operational
from questtrain.config.loading import flatten, read_config
from questtrain.config.reproducible import DECIDES_BITS
from questtrain.data import TokenDataset
from questtrain.data.identity import DataIdentity, read_identity
from questtrain.data.stamps import require_same_shards
from questtrain.errors import ReadFailed, UserError, WriteFailed
from questtrain.store.checkpoint import last_good_checkpoint
from questtrain.store.checkpoint_folders import checkpoint_folders
from questtrain.store.files import FULL, copy_file, sha256_of, write_text, writing
from questtrain.store.run_record import RunRecord, read_run_record
from questtrain.train.claim import LOCK, claimed
from questtrain.train.weight_source import WeightSource

log = logging.getLogger(__name__)

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
    held = False
    try:
        with claimed(folder):
            held = True
            yield folder
    finally:
        if held and [file.name for file in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder, ignore_errors=True)


def settle_run(
    folder: Path, config: TrainConfig, dataset: TokenDataset, initial: WeightSource | None = None
) -> RunRecord | None:
    """Make the folder this run's: its ``config.yaml``, its data's identity and its tokenizer, and
    the hash of its ``initial`` weights where they are others'; returns its record if it has ended
    already.

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
    require_same_shards(folder, dataset)
    _keep_data(folder, dataset)
    if initial is not None:
        initial.facts(str(config.init_from)).write(folder)
    write_text(path, yaml.safe_dump(asdict(config), sort_keys=False))
    return read_run_record(folder)


def _check_same(folder: Path, old: TrainConfig, new: TrainConfig, dataset: TokenDataset) -> None:
    # Where the data's content is known, it may have moved: only other data is another run.
    places = DATA_PLACES if read_identity(folder) is not None else ()
    before, after = flatten(asdict(old)), flatten(asdict(new))
    settings = [
        f"  {key}: {before.get(key)!r} in the folder, {after.get(key)!r} asked for"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and _counts(key, new) and key not in places
    ]
    data = _data_differences(folder, dataset)
    if not settings and not data:
        return
    what = "another configuration" if settings else "other data"
    advice = "ask for the settings of the folder" if settings else "give it the data it began with"
    raise UserError(
        f"{folder} holds a run with {what}:\n"
        + "\n".join([*settings, *data])
        + f"\nGive this run another name=…, or {advice}."
    )


def _counts(key: str, config: TrainConfig) -> bool:
    """Whether the setting is a part of what the run computes."""
    return not is_operational(key) or (config.train.reproducible and key in DECIDES_BITS)


def _data_differences(folder: Path, dataset: TokenDataset) -> list[str]:
    """One line a difference between the data that the folder's run began with and ``dataset``."""
    now = DataIdentity.of(dataset)
    began = read_identity(folder)
    if began is not None:
        return began.differences(now)
    copy = folder / dataset.tokenizer.path.name
    if not checkpoint_folders(folder) or not copy.exists():
        return []
    before = sha256_of(copy)
    if before != now.tokenizer_sha256:
        return [
            f"  tokenizer: SHA-256 {before[:12]} in the folder, {now.tokenizer_sha256[:12]} now"
        ]
    log.warning(
        "%s was begun by an earlier version, which did not record its data: the tokenizer is the"
        " same, the tokens are taken to be",
        folder,
    )
    return []


def _keep_data(folder: Path, dataset: TokenDataset) -> None:
    """Record the data in the folder and keep a copy of the tokenizer there, if it lacks either."""
    identity = DataIdentity.of(dataset)
    copy = folder / dataset.tokenizer.path.name
    if not copy.exists() or sha256_of(copy) != identity.tokenizer_sha256:
        copy_file(dataset.tokenizer.path, copy)
    if read_identity(folder) is None:
        identity.write(folder)


@contextmanager
def advising_on_disk(folder: Path) -> Iterator[None]:
    """Ends a WriteFailed's or ReadFailed's message with the last good checkpoint and what to do."""
    try:
        yield
    except (WriteFailed, ReadFailed) as error:
        cure = "Make room, and" if error.errno in FULL else "When the file system works again,"
        last = last_good_checkpoint(folder)
        advice = f"Last good checkpoint: {last}. {cure} the same command goes on."
        raise error.advising(advice) from error
