"""Token shards on disk and the data set they form.

A shard is a flat little-endian uint16 or uint32 file of token ids; every document in it is preceded
by BOS. Files made elsewhere may have another width and a header.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questtrain.data.records import (
    Manifest,
    ShardRecord,
    Split,
    read_counts,
    read_manifest,
)
from questtrain.data.token_reads import Stamp, read_at
from questtrain.data.tokenizer import Tokenizer, load_tokenizer
from questtrain.errors import UserError
from questtrain.store.files import sha256_of
from questtrain.store.patience import read_patiently

log = logging.getLogger(__name__)


def token_dtype(vocab_size: int) -> str:
    """numpy name of the smallest type for the ids: ``<u2`` up to 65,536 of them, else ``<u4``."""
    return "<u2" if vocab_size <= 65_536 else "<u4"


@dataclass(frozen=True)
class Shard:
    """The first ``num_tokens`` tokens of the token file that ``record`` is of; their ids lie below
    ``vocab_size``, where that is known.

    The file was as ``stamp`` says when it was opened; ``replaced`` are stamps of files that have
    stood in its place since and held the same.
    """

    path: Path
    dtype: str
    num_tokens: int
    record: ShardRecord
    stamp: Stamp
    vocab_size: int | None = None
    replaced: list[Stamp] = field(default_factory=list, compare=False)

    def read(self, start: int = 0, count: int | None = None) -> NDArray[Any]:
        """``count`` tokens (all that follow) from ``start`` on: ``dtype`` [count]. UserError as
        `require_unchanged`, ReadFailed where the disk fails for long."""
        tokens = np.empty(self.num_tokens - start if count is None else count, self.dtype)

        def read(path: Path) -> NDArray[Any]:
            self.read_into(tokens, start)
            self.require_unchanged()
            return tokens

        return read_patiently(self.path, read)

    def read_into(self, tokens: NDArray[Any], start: int) -> None:
        """Fill ``tokens`` (``dtype`` [count]) with those from ``start`` on, once: OSError where the
        disk fails. What was read counts after `require_unchanged` only."""
        try:
            place = self.record.offset + start * tokens.itemsize
            enough = read_at(self.path, self.stamp, place, tokens)
        except FileNotFoundError as error:
            raise self.damaged("it is missing") from error
        if not enough:
            self.require_unchanged()
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))  # try it again

    def require_unchanged(self) -> None:
        """UserError if the file does not hold what its record says any more: it is gone, cut, or
        was written to. One that was replaced by the same bytes is the same."""
        now = self._stamp_now()
        if now in (self.stamp, *self.replaced):
            return
        if now.bytes != self.stamp.bytes:
            was = f"it holds {now.bytes:,} bytes, and held {self.stamp.bytes:,} when it was opened"
            raise self.damaged(was)
        log.warning("%s was written to: comparing it with its checksum", self.path)
        if sha256_of(self.path) != self.record.sha256 or self._stamp_now() != now:
            raise self.damaged("it was changed after it was opened")
        self.replaced.append(now)

    def _stamp_now(self) -> Stamp:
        try:
            return Stamp.of(self.path)
        except FileNotFoundError as error:
            raise self.damaged("it is missing") from error

    def verify(self) -> None:
        """Read all of it; UserError if it is not what its checksum is of."""
        if sha256_of(self.path) != self.record.sha256:
            raise self.damaged("its checksum differs")

    def damaged(self, reason: str) -> UserError:
        """What to raise for a file that is not what its record says."""
        return _bad_shard(self.path, Path(self.record.file).is_absolute(), reason)

    def beyond_vocabulary(self, token: int, place: int) -> UserError:
        """What to raise for the id ``token`` at ``place``, which no embedding row belongs to."""
        last = (self.vocab_size or 0) - 1
        return UserError(
            f"the token shard {self.path} is damaged: token {place:,} is the id {token:,}, and the"
            f" vocabulary ends at {last:,}. `questtrain data inspect --verify` with the same data"
            " settings compares every shard with its checksum and says how to repair them"
        )


@dataclass(frozen=True)
class TokenSplit:
    """The shards of ``train`` or ``validation`` that a run reads; iterates over them."""

    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards)

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.num_tokens for shard in self.shards)


class TokenDataset:
    """A prepared folder, opened for a run.

    ``train`` and ``validation`` are `TokenSplit`s, ``tokenizer`` the folder's own copy.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, limit: int | None, max_tokens: int | None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.vocab_size = manifest.vocab_size
        self._records = prefix(manifest.shards, limit)
        self.train = TokenSplit(_cut(self._open("train"), max_tokens))
        self.validation = TokenSplit(tuple(self._open("validation")))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens, from the copy in the folder."""
        entry, bos = self.manifest.tokenizer, self.manifest.bos_id
        return load_tokenizer(self.folder / entry["file"], entry["name"], bos)

    @cached_property
    def unigram_entropy(self) -> float:
        """Entropy in nats of the ids in the training shards: the loss of the best constant guess.

        Shards that ``max_tokens`` cuts count whole.
        """
        pieces = [shard.record.piece for shard in self.train]
        return unigram_entropy(self.folder, pieces, self.vocab_size)

    def verify(self) -> None:
        """Compare every checksum with the manifest; UserError names the first that differs."""
        for record in self.manifest.shards:
            shard = self._shard(record)
            shard.verify()
        tokenizer = self.folder / self.manifest.tokenizer["file"]
        if sha256_of(tokenizer) != self.manifest.tokenizer["sha256"]:
            raise UserError(
                f"the tokenizer copy {tokenizer} is corrupt: its checksum differs from the "
                "manifest's. Delete the folder and run `questtrain data prepare` again"
            )

    def _open(self, split: Split) -> list[Shard]:
        return [self._shard(record) for record in self._records if record.split == split]

    def _shard(self, record: ShardRecord) -> Shard:
        """Open a shard, checking its size, which costs nothing."""
        path = self.folder / record.file
        dtype = record.dtype or self.manifest.dtype
        expected = record.offset + record.tokens * np.dtype(dtype).itemsize
        elsewhere = Path(record.file).is_absolute()
        if not path.is_file():
            raise _bad_shard(path, elsewhere, "it is missing")
        stamp = read_patiently(path, Stamp.of)
        if stamp.bytes != expected:
            reason = f"it holds {stamp.bytes:,} bytes, the manifest says {expected:,}"
            raise _bad_shard(path, elsewhere, reason)
        return Shard(path, dtype, record.tokens, record, stamp, self.vocab_size)


def open_dataset(
    folder: str | Path, tokens_needed: int | None = None, max_tokens: int | None = None
) -> TokenDataset:
    """Open a prepared folder; UserError if it is incomplete, damaged or of another version.

    With ``tokens_needed``, the train split is the shortest prefix of the shards that holds that
    many tokens (all, if there are fewer), so that a folder that grows keeps what an earlier run
    saw; ``max_tokens`` cuts it to exactly that many.
    """
    folder = Path(folder).expanduser()
    limit = tightest(tokens_needed, max_tokens)
    return TokenDataset(folder, read_manifest(folder), limit, max_tokens)


def tightest(*limits: int | None) -> int | None:
    """The smallest of the limits that are given; None without any."""
    return min((limit for limit in limits if limit is not None), default=None)


def unigram_entropy(folder: Path, pieces: Sequence[str], vocab_size: int) -> float:
    """-Σ p log p in nats, p the relative frequencies of the ids in the named pieces; 0 if none."""
    counts = np.zeros(vocab_size, np.int64)
    for piece in pieces:
        counts += read_counts(folder, piece, vocab_size)
    total = int(counts.sum())
    present = counts[counts > 0].astype(np.float64)
    return math.log(total) - float(present @ np.log(present)) / total if total else 0.0


def prefix(shards: Sequence[ShardRecord], limit: int | None) -> list[ShardRecord]:
    """Of all shards in the order of their pieces, those that a run of ``limit`` tokens reads.

    Pieces of validation files always belong; of the others, the first ones until their training
    tokens reach ``limit``. A piece's validation shard goes with its training shard.
    """
    chosen: set[str] = set()
    tokens = 0
    for shard in shards:
        if limit is None or tokens < limit or shard.piece.startswith("validation-"):
            chosen.add(shard.piece)
            tokens += shard.tokens if shard.split == "train" else 0
    return [shard for shard in shards if shard.piece in chosen]


def _cut(shards: Sequence[Shard], max_tokens: int | None) -> tuple[Shard, ...]:
    """The shards' first ``max_tokens`` tokens."""
    if max_tokens is None:
        return tuple(shards)
    kept = []
    for shard in shards:
        if max_tokens > 0:
            kept.append(replace(shard, num_tokens=min(shard.num_tokens, max_tokens)))
        max_tokens -= shard.num_tokens
    return tuple(kept)


def _bad_shard(path: Path, elsewhere: bool, reason: str) -> UserError:
    if elsewhere:
        advice = "restore it, or run `questtrain data prepare` again to take it as it is now"
    else:
        advice = (
            "put it back as it was, or delete it and run `questtrain data prepare` again, which"
            " makes what is absent"
        )
    return UserError(f"the token shard {path} is damaged: {reason}. To repair: {advice}")
