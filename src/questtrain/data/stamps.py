"""Shards as they were when a run last began: one that was written to since is hashed again.

A run trusts the sizes of its shards when it begins (`questtrain data inspect --verify` reads them
whole). But it must not go on with others than it began with, also where only their content changed
while it did not run, and hashing all of them at each start would take minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from questtrain.data.shards import Shard, TokenDataset
from questtrain.data.token_reads import Stamp
from questtrain.store.files import write_json
from questtrain.store.json_file import read_json

STAMPS = "data_stamps.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stamps:
    """``data_stamps.json``: the shards' stamps, by the name that the manifest gives them."""

    shards: dict[str, Stamp]


def require_same_shards(folder: Path, dataset: TokenDataset) -> None:
    """Compare with its checksum each shard that has another stamp than the run in ``folder`` left
    there, and keep the stamps of now. UserError, and nothing is written, where one differs."""
    shards = [*dataset.train, *dataset.validation]
    before = _read(folder)
    now = {shard.record.file: shard.stamp for shard in shards}
    _verify(shard for shard in shards if before.get(shard.record.file, shard.stamp) != shard.stamp)
    if now != before:
        write_json(folder / STAMPS, asdict(_Stamps(now)))


def _read(folder: Path) -> dict[str, Stamp]:
    remedy = "Delete it: the shards are then taken to be as they were."
    try:
        return read_json(folder / STAMPS, _Stamps, remedy).shards
    except FileNotFoundError:
        return {}


def _verify(shards: Iterable[Shard]) -> None:
    for shard in shards:
        log.info("%s was written to since this run began: checking it", shard.path)
        shard.verify()
