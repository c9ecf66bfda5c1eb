"""One piece → its shards: read documents, choose their split, tokenize, write.

Runs in the preparing process or in a worker. Everything is written under temporary names and
renamed when complete; the piece's record comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from questtrain.data.documents import NotUtf8Error, read_documents
from questtrain.data.hub import hub_file
from questtrain.data.records import PieceRecord, ShardRecord, Split, counts_path
from questtrain.data.tokenizer import Tokenizer
from questtrain.errors import UserError
from questtrain.store.files import atomic_write

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
READ_BYTES = 1 << 23
SPLITS: tuple[Split, Split] = ("train", "validation")

OnTokens = Callable[[int], object]


@dataclass(frozen=True)
class PieceTask:
    """All that is needed to make one piece, in plain types so that it travels as JSON.

    ``files`` are local paths, or names in ``hub_dataset``. ``validation_fraction`` is None where
    all documents belong to ``split``. ``tokenized``: the file already holds token ids.
    """

    folder: str
    name: str
    split: Split
    files: list[str]
    tokenizer: str
    vocab_size: int
    dtype: str
    text_field: str
    validation_fraction: float | None
    tokenized: bool
    hub_dataset: str | None
    skip_undecodable: bool


def make_piece(task: PieceTask, tokenizer: Tokenizer, on_tokens: OnTokens) -> PieceRecord:
    """Make the piece's shards and write its record; ``on_tokens`` hears of tokens as they come.

    Raises UserError for bad data, and when the folder cannot be written (a full disk).
    """
    folder = Path(task.folder)
    counts = np.zeros(task.vocab_size, np.int64)
    try:
        if task.tokenized:
            record = _scan_tokens(task, counts, on_tokens)
        else:
            record = _tokenize(task, tokenizer, counts, on_tokens)
        with atomic_write(counts_path(folder, task.name)) as file:
            np.save(file, counts)
        record.write(folder)
    except OSError as error:
        raise UserError(
            f"cannot make {task.name} in {folder}: {error}. Finished shards are kept"
        ) from error
    return record


def is_validation(document: bytes, fraction: float) -> bool:
    """Whether a document (UTF-8) falls on the validation side: a pure function of its content."""
    digest = hashlib.blake2b(document, digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64


def _tokenize(
    task: PieceTask, tokenizer: Tokenizer, counts: NDArray[np.int64], on_tokens: OnTokens
) -> PieceRecord:
    skipped: dict[str, int] = {}
    with ExitStack() as stack:
        writers = [_ShardWriter(task, split, stack) for split in SPLITS]
        for batch in _batches(_documents(task, skipped)):
            rows = tokenizer.encode_batch([text for _, text in batch])
            for writer in writers:
                mine = [i for i, (split, _) in enumerate(batch) if split == writer.split]
                ids = [token for i in mine for token in (tokenizer.bos_id, *rows[i])]
                tokens = np.array(ids, dtype=task.dtype)
                writer.write(tokens, len(mine), sum(len(batch[i][1].encode()) for i in mine))
                if writer.split == "train":
                    counts += np.bincount(tokens, minlength=task.vocab_size)
                on_tokens(len(tokens))
    return PieceRecord(task.name, [w.record() for w in writers if w.tokens], skipped)


def _documents(task: PieceTask, skipped: dict[str, int]) -> Iterator[tuple[Split, str]]:
    """(split, text) of every document that is kept; counts the others in ``skipped``."""
    for text in _texts(task, skipped):
        # A JSON escape can hold half a surrogate pair, which no tokenizer accepts.
        data = text.encode("utf-8", "replace")
        if not data.strip():
            skipped["empty"] = skipped.get("empty", 0) + 1
            continue
        split = task.split
        if task.validation_fraction is not None:
            split = "validation" if is_validation(data, task.validation_fraction) else "train"
        yield split, data.decode()


def _texts(task: PieceTask, skipped: dict[str, int]) -> Iterator[str]:
    for name in task.files:
        path = hub_file(task.hub_dataset, name, "dataset") if task.hub_dataset else Path(name)
        found = 0
        try:
            for text in read_documents(path, task.text_field):
                found += 1
                yield text
        except NotUtf8Error:
            if not task.skip_undecodable:
                raise
            skipped["not UTF-8"] = skipped.get("not UTF-8", 0) + 1
            continue
        if not found:
            raise UserError(
                f"the data file {path} is empty: it holds no documents. Leave it out of data.files"
            )


def _batches(documents: Iterator[tuple[Split, str]]) -> Iterator[list[tuple[Split, str]]]:
    batch: list[tuple[Split, str]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Appends tokens to one shard; its file opens with the first, so no shard is empty.

    The file appears under its name when ``stack`` closes without an exception.
    """

    def __init__(self, task: PieceTask, split: Split, stack: ExitStack) -> None:
        self.split = split
        self.tokens = 0
        self._piece = task.name
        self._path = Path(task.folder) / f"{split}-{task.name.partition('-')[2]}.bin"
        self._stack = stack
        self._file: BinaryIO | None = None
        self._documents = 0
        self._text_bytes = 0
        self._digest = hashlib.sha256()

    def write(self, tokens: NDArray[Any], documents: int, text_bytes: int) -> None:
        """Append ``tokens`` (of the shard's dtype)."""
        if not len(tokens):
            return
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self._path))
        data = tokens.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.tokens += len(tokens)
        self._documents += documents
        self._text_bytes += text_bytes

    def record(self) -> ShardRecord:
        """What the manifest says about the shard."""
        return ShardRecord(
            file=self._path.name,
            split=self.split,
            piece=self._piece,
            tokens=self.tokens,
            documents=self._documents,
            text_bytes=self._text_bytes,
            sha256=self._digest.hexdigest(),
        )


def _scan_tokens(task: PieceTask, counts: NDArray[np.int64], on_tokens: OnTokens) -> PieceRecord:
    """Check, count and hash a file of token ids, which stays where it is."""
    path = Path(task.files[0])
    itemsize = np.dtype(task.dtype).itemsize
    size = path.stat().st_size
    if size % itemsize:
        raise UserError(
            f"the token file {path} holds {size:,} bytes, no multiple of {itemsize}: a vocabulary "
            f"of {task.vocab_size:,} is stored as uint{8 * itemsize}. The file is truncated or "
            "belongs to another vocabulary"
        )
    digest = hashlib.sha256()
    tokens = 0
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
            ids = np.frombuffer(data, dtype=task.dtype)
            _check_ids(ids, task, path, tokens)
            if task.split == "train":
                counts += np.bincount(ids, minlength=task.vocab_size)
            tokens += len(ids)
            on_tokens(len(ids))
    shard = ShardRecord(str(path), task.split, task.name, tokens, None, None, digest.hexdigest())
    return PieceRecord(task.name, [shard], {})


def _check_ids(ids: NDArray[Any], task: PieceTask, path: Path, offset: int) -> None:
    if (largest := int(ids.max())) >= task.vocab_size:
        place = offset + int(ids.argmax())
        raise UserError(
            f"the token file {path} holds the id {largest:,} at token {place:,}, but the "
            f"vocabulary ends at {task.vocab_size - 1:,}: set data.tokenizer to the tokenizer that "
            f"made the file, or data.vocab_size if it is padded (ids are read as "
            f"uint{8 * ids.itemsize})"
        )
