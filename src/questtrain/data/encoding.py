"""Documents → token ids, in batches of bounded size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questtrain.data.documents import Document
from questtrain.data.records import Split
from questtrain.data.segments import Segment, encode_segments, segments_of
from questtrain.data.text_rows import DataFileError
from questtrain.data.tokenizer import EncodingError, Tokenizer

BATCH_CHARACTERS = 1 << 20
BATCH_SEGMENTS = 1024


@dataclass(frozen=True)
class Facts:
    """What is known of a document after one reading: its bytes in UTF-8, whether they are white
    space only, and a hash of them."""

    size: int
    blank: bool
    hash: bytes

    def falls_to_validation(self, fraction: float) -> bool:
        """Whether it is on the validation side: a pure function of its content."""
        return int.from_bytes(self.hash, "little") < fraction * 2.0**64


def read_facts(document: Document) -> Facts:
    """Read the document once; NotUtf8Error if it is no text."""
    digest = hashlib.blake2b(digest_size=8)
    size, blank = 0, True
    for block in document.blocks():
        data = block.encode()
        digest.update(data)
        size += len(data)
        blank = blank and not data.strip()
    return Facts(size, blank, digest.digest())


@dataclass(frozen=True)
class Encoded:
    """Some tokens of one split (of the asked dtype, [n]), BOS before each document that begins in
    them; ``documents`` and ``text_bytes`` are of those, ``unknown`` counts tokens that stand for
    text outside the vocabulary, ``lost`` characters that have no token at all."""

    split: Split
    tokens: NDArray[Any]
    documents: int
    text_bytes: int
    unknown: int
    lost: int


@dataclass(frozen=True)
class _Part:
    """A segment on its way; ``size`` is the document's in bytes where it begins, else None."""

    split: Split
    place: str
    segment: Segment
    size: int | None


def encode_documents(
    documents: Iterable[tuple[Split, Document, int]], tokenizer: Tokenizer, dtype: str
) -> Iterator[Encoded]:
    """The tokens of ``documents`` (split, document, its bytes) in order, by split.

    Raises DataFileError that names the document which the tokenizer cannot encode.
    """
    for batch in _batches(_parts(documents, tokenizer)):
        rows = _encode(batch, tokenizer)
        for split in dict.fromkeys(part.split for part in batch):
            mine = [pair for pair in zip(batch, rows, strict=True) if pair[0].split == split]
            yield _encoded(split, mine, tokenizer, dtype)


def _parts(
    documents: Iterable[tuple[Split, Document, int]], tokenizer: Tokenizer
) -> Iterator[_Part]:
    for split, document, size in documents:
        first: int | None = size
        try:
            for segment in segments_of(document, tokenizer):
                yield _Part(split, document.place, segment, first)
                first = None
        except EncodingError as error:
            raise _cannot_encode(document.place, tokenizer, error) from error


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part.segment.text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_SEGMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[_Part], tokenizer: Tokenizer) -> list[list[int]]:
    try:
        return encode_segments(tokenizer, [part.segment for part in batch])
    except EncodingError as error:
        if len(batch) == 1:
            raise _cannot_encode(batch[0].place, tokenizer, error) from error
        return [_encode([part], tokenizer)[0] for part in batch]  # which document is it?


def _cannot_encode(place: str, tokenizer: Tokenizer, error: EncodingError) -> DataFileError:
    return DataFileError(
        f"the tokenizer {tokenizer.name} cannot encode the document {place}: {error.reason}. "
        "Choose a tokenizer that covers every character (a byte-level one, one with byte fallback "
        "or with an unknown token) or another data.bos_token, or leave the document out"
    )


def _encoded(
    split: Split, encoded: list[tuple[_Part, list[int]]], tokenizer: Tokenizer, dtype: str
) -> Encoded:
    parts = [part for part, _ in encoded]
    ids: list[int] = []
    for part, row in encoded:
        ids += row if part.size is None else [tokenizer.bos_id, *row]
    tokens = np.array(ids, dtype=dtype)
    unknown = tokenizer.unknown_id
    return Encoded(
        split,
        tokens,
        documents=sum(part.size is not None for part in parts),
        text_bytes=sum(part.size or 0 for part in parts),
        unknown=0 if unknown is None else int(np.count_nonzero(tokens == unknown)),
        lost=tokenizer.lost_characters([part.segment.text for part in parts]),
    )
