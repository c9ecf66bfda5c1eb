"""Which data a run reads, by content: not where the files lie or when they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questtrain.data.records import ShardRecord
from questtrain.data.shards import TokenDataset, TokenSplit, first_pieces
from questtrain.store.files import write_json
from questtrain.store.json_file import read_json

IDENTITY = "data.json"


@dataclass(frozen=True)
class DataIdentity:
    """The tokens that a run reads, the tokenizer that made them, and the corpus they are of.

    ``*_sha256`` of a split hashes its shards and how much of each is read. ``corpus_sha256`` is
    equal for runs of one corpus, whatever part of it they read: it hashes what every run reads (the
    first training shard and the validation data beside it) and the size of all source files, which
    a corpus that is prepared as far as it is needed (C4) does not have.
    """

    tokenizer_sha256: str
    vocab_size: int
    bos_id: int
    dtype: str
    train_tokens: int
    train_sha256: str
    validation_tokens: int
    validation_sha256: str
    corpus_sha256: str

    @classmethod
    def of(cls, dataset: TokenDataset) -> DataIdentity:
        """The identity of what a run reads of ``dataset``."""
        manifest = dataset.manifest
        common = [_content(record, record.tokens) for record in first_pieces(manifest.shards)]
        size = None if dataset.growable else manifest.source["bytes"]
        return cls(
            tokenizer_sha256=manifest.tokenizer["sha256"],
            vocab_size=manifest.vocab_size,
            bos_id=manifest.bos_id,
            dtype=manifest.dtype,
            train_tokens=dataset.train.num_tokens,
            train_sha256=_split(dataset.train),
            validation_tokens=dataset.validation.num_tokens,
            validation_sha256=_split(dataset.validation),
            corpus_sha256=_hash([*common, [size]]),
        )

    def differences(
        self, now: DataIdentity, before: str = "in the folder", after: str = "now"
    ) -> list[str]:
        """One line a difference between this identity and ``now``; where they are from is
        ``before`` and ``after``."""
        lines = []
        for key, mine, other in (
            ("tokenizer", _short(self.tokenizer_sha256), _short(now.tokenizer_sha256)),
            ("vocabulary", f"{self.vocab_size:,} tokens", f"{now.vocab_size:,} tokens"),
            ("token that begins documents", f"id {self.bos_id}", f"id {now.bos_id}"),
            ("training data", self._training(), now._training()),
            ("validation data", self._validation(), now._validation()),
        ):
            if mine != other:
                lines.append(f"  {key}: {mine} {before}, {other} {after}")
        return lines

    def _training(self) -> str:
        return f"{self.train_tokens:,} tokens ({_short(self.train_sha256)})"

    def _validation(self) -> str:
        return f"{self.validation_tokens:,} tokens ({_short(self.validation_sha256)})"

    def write(self, folder: Path) -> None:
        """Write ``data.json`` into a run's folder."""
        write_json(folder / IDENTITY, asdict(self))


def read_identity(folder: Path) -> DataIdentity | None:
    """What a run's folder says of its data; None where it says nothing, as folders of earlier
    versions. DamagedJson names what is wrong with it."""
    remedy = "Restore it; without it the run goes on with whatever data it is given."
    try:
        return read_json(folder / IDENTITY, DataIdentity, remedy)
    except FileNotFoundError:
        return None


def _split(split: TokenSplit) -> str:
    return _hash(_content(shard.record, shard.num_tokens) for shard in split)


def _content(record: ShardRecord, tokens: int) -> Sequence[Any]:
    return record.split, record.sha256, record.dtype, record.offset, tokens


def _hash(contents: Iterable[Sequence[Any]]) -> str:
    return hashlib.sha256(json.dumps(list(contents)).encode()).hexdigest()


def _short(sha256: str) -> str:
    return f"SHA-256 {sha256[:12]}"
