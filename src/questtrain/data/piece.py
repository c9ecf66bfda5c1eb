"""One piece → its shards: read documents, choose their split, tokenize, write.

Runs in the preparing process or in a worker. Everything is written under temporary names and
renamed when complete; the piece's record comes last.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from questtrain.data.documents import Document, read_documents
from questtrain.data.encoding import Encoded, encode_documents, read_facts
from questtrain.data.hub import download
from questtrain.data.parquet_rows import PARQUET_SUFFIX
from questtrain.data.records import SPLITS, PieceRecord, ShardRecord, Split, counts_path
from questtrain.data.shards import token_dtype
from questtrain.data.text_rows import DataFileError, NotUtf8Error, TextField
from questtrain.data.token_files import read_layout
from questtrain.data.tokenizer import Tokenizer
from questtrain.errors import PreparationStopped, UserError
from questtrain.store.files import atomic_write
from questtrain.store.patience import passing_reason, tried_again

READ_BYTES = 1 << 23

OnTokens = Callable[[int], object]


@dataclass(frozen=True)
class PieceTask:
    """All that is needed to make one piece, in plain types so that it travels as JSON.

    ``files`` are local paths, or names in ``hub_dataset``. ``validation_fraction`` is None where
    all documents belong to ``split``. ``source`` is its kind: files of the source tokens hold
    token ids, as ``dtype_of_files`` (data.dtype) says.
    """

    folder: str
    name: str
    split: Split
    files: list[str]
    tokenizer: str
    tokenizer_name: str
    bos_id: int
    vocab_size: int
    dtype_of_files: str
    text_field: str
    validation_fraction: float | None
    source: str
    hub_dataset: str | None


def make_piece(task: PieceTask, tokenizer: Tokenizer, on_tokens: OnTokens) -> PieceRecord:
    """Make the piece's shards and write its record; ``on_tokens`` hears of tokens as they come.

    A file system that fails for a moment lets the piece begin anew, and ``on_tokens`` hears of its
    tokens again. Raises UserError for bad data, and when the folder cannot be written (a full
    disk); PreparationStopped where the hub or a file system fails for long.
    """
    try:
        return tried_again(
            f"making {task.name}", lambda: _make_once(task, tokenizer, on_tokens), _passing
        )
    except UserError as error:
        if _passing(error) is None:
            raise
        raise PreparationStopped(f"{error}. When that works, the same command goes on.") from error


def _passing(error: Exception) -> str | None:
    """What a file system said, where it may work again soon: the cause of what `_make_once`
    raises, or the cause of that."""
    cause = error.__cause__ if isinstance(error, UserError) else None
    return passing_reason(cause) or passing_reason(cause.__cause__ if cause else None)


def _make_once(task: PieceTask, tokenizer: Tokenizer, on_tokens: OnTokens) -> PieceRecord:
    folder = Path(task.folder)
    counts = np.zeros(task.vocab_size, np.int64)
    try:
        if task.source == "tokens":
            record = _scan_tokens(task, counts, on_tokens)
        else:
            record = _tokenize(task, tokenizer, counts, on_tokens)
        with atomic_write(counts_path(folder, task.name)) as file:
            np.save(file, counts)
        record.write(folder)
    except DataFileError as error:
        raise UserError(f"{error} (what is already prepared is kept)") from error
    except OSError as error:
        raise UserError(
            f"cannot make {task.name} in {folder}: {error}. Finished shards are kept"
        ) from error
    return record


def _tokenize(
    task: PieceTask, tokenizer: Tokenizer, counts: NDArray[np.int64], on_tokens: OnTokens
) -> PieceRecord:
    skipped: Counter[str] = Counter()
    unknown = lost = 0
    dtype = token_dtype(task.vocab_size)
    with ExitStack() as stack:
        writers = {split: _ShardWriter(task, split, stack) for split in SPLITS}
        for encoded in encode_documents(_documents(task, skipped), tokenizer, dtype):
            writers[encoded.split].write(encoded)
            if encoded.split == "train":
                counts += np.bincount(encoded.tokens, minlength=task.vocab_size)
            unknown += encoded.unknown
            lost += encoded.lost
            on_tokens(len(encoded.tokens))
    shards = [writer.record() for writer in writers.values() if writer.tokens]
    return PieceRecord(task.name, shards, dict(skipped), unknown, lost)


def _documents(task: PieceTask, skipped: Counter[str]) -> Iterator[tuple[Split, Document, int]]:
    """(split, document, bytes of UTF-8) of what is kept; counts the rest in ``skipped``."""
    for document in _all_documents(task, skipped):
        try:
            facts = read_facts(document)
        except NotUtf8Error:
            if task.source != "stdlib":
                raise
            skipped["not UTF-8"] += 1
            continue
        if facts.blank:
            skipped["empty"] += 1
            continue
        split = task.split
        if task.validation_fraction is not None:
            validates = facts.falls_to_validation(task.validation_fraction)
            split = "validation" if validates else "train"
        yield split, document, facts.size


def _all_documents(task: PieceTask, skipped: Counter[str]) -> Iterator[Document]:
    for name in task.files:
        path = download(task.hub_dataset, name, "dataset") if task.hub_dataset else Path(name)
        found = 0
        for document in read_documents(path, TextField(task.text_field)):
            found += 1
            yield document
        if found:
            continue
        if not path.name.lower().endswith(PARQUET_SUFFIX):
            raise DataFileError(
                f"the data file {path} is empty: it holds no documents. Leave it out of data.files"
            )
        # Writers of parquet in parts leave parts of no rows.
        skipped["file of no rows"] += 1


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

    def write(self, encoded: Encoded) -> None:
        """Append tokens."""
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self._path))
        data = encoded.tokens.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.tokens += len(encoded.tokens)
        self._documents += encoded.documents
        self._text_bytes += encoded.text_bytes

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
    layout = read_layout(path, task.vocab_size, task.dtype_of_files)
    digest = hashlib.sha256()
    tokens = 0
    with path.open("rb") as file:
        digest.update(file.read(layout.offset))
        while data := file.read(READ_BYTES):
            digest.update(data)
            ids = np.frombuffer(data, dtype=layout.dtype)
            _check_ids(ids, task, path, tokens)
            if task.split == "train":
                counts += np.bincount(ids, minlength=task.vocab_size)
            tokens += len(ids)
            on_tokens(len(ids))
    shard = ShardRecord(
        file=str(path),
        split=task.split,
        piece=task.name,
        tokens=tokens,
        documents=None,
        text_bytes=None,
        sha256=digest.hexdigest(),
        dtype=layout.dtype,
        offset=layout.offset,
    )
    return PieceRecord(task.name, [shard], {})


def _check_ids(ids: NDArray[Any], task: PieceTask, path: Path, offset: int) -> None:
    largest, smallest = int(ids.max()), int(ids.min())
    if smallest >= 0 and largest < task.vocab_size:
        return
    wrong, place = (smallest, ids.argmin()) if smallest < 0 else (largest, ids.argmax())
    raise UserError(
        f"the token file {path} holds the id {wrong:,} at token {offset + int(place):,}, but the "
        f"vocabulary ends at {task.vocab_size - 1:,}: set data.tokenizer to the tokenizer that "
        f"made the file, data.vocab_size if it is padded, or data.dtype if its ids are not "
        f"{ids.dtype.name}"
    )
