"""Which data a run reads, by content: not where the files lie or when they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questtrain.data.records import GROWABLE, ShardRecord, json_sha256
from questtrain.data.shards import TokenDataset, TokenSplit, prefix
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
        common = [_content(record, record.tokens) for record in prefix(manifest.shards, 1)]
        grows = manifest.source["source"] in GROWABLE
        size = None if grows else manifest.source["bytes"]
        return cls(
            tokenizer_sha256=manifest.tokenizer["sha256"],
            vocab_size=manifest.vocab_size,
            bos_id=manifest.bos_id,
            dtype=manifest.dtype,
            train_tokens=dataset.train.num_tokens,
            train_sha256=_split(dataset.train),
            validation_tokens=dataset.validation.num_tokens,
            validation_sha256=_split(dataset.validation),
            corpus_sha256=json_sha256([*common, [size]]),
        )

    def differences(
        self, now: DataIdentity, before: str = "in the folder", after: str = "now"
    ) -> list[str]:
        """One line a difference between this identity and ``now``; where they are from is
        ``before`` and ``after``."""
        mine, other = self._in_words(), now._in_words()
        return [
            f"  {key}: {mine[key]} {before}, {other[key]} {after}"
            for key in mine
            if mine[key] != other[key]
        ]

    def _in_words(self) -> dict[str, str]:
        return {
            "tokenizer": _short(self.tokenizer_sha256),
            "vocabulary": f"{self.vocab_size:,} tokens",
            "token that begins documents": f"id {self.bos_id}",
            "training data": f"{self.train_tokens:,} tokens ({_short(self.train_sha256)})",
            "validation data": f"{self.validation_tokens:,} tokens"
            f" ({_short(self.validation_sha256)})",
        }

    def write(self, folder: Path) -> None:
        """Write ``data.json`` into a run's folder."""
        write_json(folder / IDENTITY, asdict(self))


def read_identity(folder: Path) -> DataIdentity | None:
    """What a run's folder says of its data; None where it says nothing, as folders of earlier
    versions. DamagedJson names what is wrong with it."""
    remedy = "Restore it; without it the run would go on with whatever data it is given."
    try:
        return read_json(folder / IDENTITY, DataIdentity, remedy)
    except FileNotFoundError:
        return None


def _split(split: TokenSplit) -> str:
    return json_sha256([_content(shard.record, shard.num_tokens) for shard in split])


def _content(record: ShardRecord, tokens: int) -> Sequence[Any]:
    return record.split, record.sha256, record.dtype, record.offset, tokens


def _short(sha256: str) -> str:
    return f"SHA-256 {sha256[:12]}"
