"""What a prepared folder says about itself: shard, piece and manifest records, as JSON.

A piece's record is written after its shards, so its presence means that they are complete; the
manifest is the sum of the records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from questtrain.errors import UserError
from questtrain.store.files import write_text
from questtrain.store.json_file import Count, DamagedJson, NotNegative, read_json

FORMAT = 2
MANIFEST = "manifest.json"
MANIFEST_REMEDY = (
    "Delete that file and run `questtrain data prepare` again; finished shards are kept"
)
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
GROWABLE = ("c4",)
"""Kinds of sources that are prepared only as far as runs need them."""


@dataclass(frozen=True)
class ShardRecord:
    """One token file; ``file`` is relative to the folder, or absolute for a user's own tokens.

    ``documents`` and ``text_bytes`` (UTF-8) are None where only the tokens are known. ``dtype`` and
    ``offset`` (bytes before the first id) are of a file that was made elsewhere; None is the
    folder's own dtype.
    """

    file: str
    split: Split
    piece: str
    tokens: Count
    documents: Count | None
    text_bytes: Count | None
    sha256: str
    dtype: str | None = None
    offset: Count = 0


@dataclass(frozen=True)
class PieceRecord:
    """One finished piece: at most one shard per split, the documents left out, by reason, and how
    much of the text the tokenizer did not know (see `Encoded`)."""

    name: str
    shards: list[ShardRecord]
    skipped: dict[str, Count]
    unknown_tokens: Count = 0
    lost_characters: Count = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> PieceRecord:
        """The record that `dataclasses.asdict` made ``values`` of."""
        return cls(**values | {"shards": [ShardRecord(**shard) for shard in values["shards"]]})

    @property
    def train_tokens(self) -> int:
        """Tokens in its training shard."""
        return sum(shard.tokens for shard in self.shards if shard.split == "train")

    def write(self, folder: Path) -> None:
        """Mark the piece as done."""
        write_text(piece_path(folder, self.name), json.dumps(asdict(self), indent=2))


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``; docs/data.md explains each key."""

    name: str
    source: dict[str, Any]
    source_sha256: str
    tokenizer: dict[str, str]
    vocab_size: Count
    bos_id: Count
    dtype: str
    complete: bool
    totals: dict[str, dict[str, Count | None]]
    unigram_entropy: NotNegative
    skipped: dict[str, Count]
    unknown_tokens: Count
    lost_characters: Count
    shards: list[ShardRecord]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class _Version:
    """What is read of a manifest first: other versions have other keys."""

    format: int


def piece_path(folder: Path, name: str) -> Path:
    """The file whose presence says that a piece is done."""
    return folder / "pieces" / f"{name}.json"


def counts_path(folder: Path, name: str) -> Path:
    """How often each token id occurs in a piece's training shard: ``.npy``, int64 [vocab]."""
    return folder / "pieces" / f"{name}.npy"


def json_sha256(value: Any) -> str:
    """Hex digest of a value that JSON can hold, written the same way always."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def totals(shards: Sequence[ShardRecord]) -> dict[str, int | None]:
    """What the shards hold together; None where it is not known of all of them."""
    documents = [shard.documents for shard in shards if shard.documents is not None]
    text_bytes = [shard.text_bytes for shard in shards if shard.text_bytes is not None]
    return {
        "shards": len(shards),
        "tokens": sum(shard.tokens for shard in shards),
        "documents": sum(documents) if len(documents) == len(shards) else None,
        "text_bytes": sum(text_bytes) if len(text_bytes) == len(shards) else None,
    }


def read_piece(folder: Path, name: str) -> PieceRecord | None:
    """The record of a finished piece; None when it has yet to be made, or made again."""
    try:
        return read_json(piece_path(folder, name), PieceRecord)
    except (FileNotFoundError, DamagedJson):
        # Records are written atomically: a damaged one is a bad disk, and making it again is safe.
        return None


def read_counts(folder: Path, piece: str, vocab_size: int) -> NDArray[np.int64]:
    """`counts_path`'s content, int64 [vocab_size]; UserError where it is not."""
    path = counts_path(folder, piece)
    try:
        counts: NDArray[np.int64] = np.load(path)
        if counts.dtype != np.int64 or counts.shape != (vocab_size,) or counts.min() < 0:
            held = f"{counts.dtype} {list(counts.shape)}"
            raise ValueError(f"it holds {held}, not {vocab_size:,} counts")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the token counts {path} are damaged: {error}. Delete {piece}.json beside them and"
            f" {MANIFEST}, and run `questtrain data prepare` again: it makes this piece anew"
        ) from error
    return counts


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``; UserError when it is absent, damaged, or of another version."""
    path = folder / MANIFEST
    try:
        version = read_json(path, _Version, MANIFEST_REMEDY).format
        if version == FORMAT:
            return read_json(path, Manifest, MANIFEST_REMEDY)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no prepared data set, or its preparation was cut off: no {MANIFEST}. "
            "Run `questtrain data prepare`, which continues where it stopped"
        ) from error
    except DamagedJson as error:
        raise UserError(f"the manifest {error}") from error
    raise UserError(
        f"{path} has format {version}, this version of questtrain reads {FORMAT}: "
        "delete the folder and run `questtrain data prepare` again"
    )
