"""The data of a run, as its folder holds it: a run goes on with what it began with, or not."""

from __future__ import annotations

import logging
from pathlib import Path

from questtrain.data import TokenDataset
from questtrain.data.identity import DataIdentity, read_identity
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.store.files import copy_file, sha256_of

log = logging.getLogger(__name__)


def data_differences(folder: Path, dataset: TokenDataset) -> list[str]:
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


def keep_data(folder: Path, dataset: TokenDataset) -> None:
    """Record the data in the folder and keep a copy of the tokenizer there, if it lacks either."""
    identity = DataIdentity.of(dataset)
    copy = folder / dataset.tokenizer.path.name
    if not copy.exists() or sha256_of(copy) != identity.tokenizer_sha256:
        copy_file(dataset.tokenizer.path, copy)
    if read_identity(folder) is None:
        identity.write(folder)
