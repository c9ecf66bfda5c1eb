"""Readers: a data file → its documents.

Plain text is one document a file, read in blocks, so that a file larger than the memory is a
document like any other; JSON, parquet and Arrow files are one document a row.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from questtrain.data.arrow_rows import ARROW_SUFFIX, arrow_rows
from questtrain.data.json_rows import JSON_SUFFIXES, json_rows
from questtrain.data.parquet_rows import PARQUET_SUFFIX, parquet_rows
from questtrain.data.text_rows import DataFileError, TextField, not_utf8

CODE_SUFFIXES = frozenset(
    {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".js", ".ts", ".java"}
    | {".go", ".rs", ".sh", ".sql", ".rb", ".lua"}
)
PLAIN_SUFFIXES = CODE_SUFFIXES | frozenset(
    {".txt", ".text", ".md", ".rst", ".tex", ".html", ".css", ".toml", ".yaml", ".yml"}
    | {".cfg", ".ini"}
)
RowsReader = Callable[[Path, TextField], Iterator[tuple[str, str]]]
ROWS: dict[str | tuple[str, ...], RowsReader] = {
    JSON_SUFFIXES: json_rows,
    PARQUET_SUFFIX: parquet_rows,
    ARROW_SUFFIX: arrow_rows,
}
"""What reads the files that are one document a row, by how their names end."""
BLOCK = 1 << 17
"""Bytes, or characters, that are handled at a time."""


@dataclass(frozen=True)
class Document:
    """One document: ``place`` names it in messages, ``blocks`` gives its text in order, in blocks
    of at most `BLOCK`, as often as it is called. A document that is a file raises NotUtf8Error
    when the block that is no UTF-8 is read."""

    place: str
    blocks: Callable[[], Iterator[str]]

    @classmethod
    def of_text(cls, place: str, text: str) -> Document:
        """A document whose text is in memory."""
        return cls(place, lambda: (text[at : at + BLOCK] for at in range(0, len(text), BLOCK)))

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.blocks())


def check_suffix(path: Path) -> None:
    """Raise DataFileError unless `read_documents` knows this kind of file."""
    if not (_rows_reader(path) or is_plain(path)):
        raise DataFileError(
            f"unknown kind of data file {path}: documents come from "
            f"{', '.join(JSON_SUFFIXES)}, {PARQUET_SUFFIX}, {ARROW_SUFFIX} (one a row) or "
            f"{', '.join(sorted(PLAIN_SUFFIXES))} (one a file)"
        )


def suffix_of(path: Path) -> str | None:
    """How the name of a file ends that `read_documents` knows, ``.jsonl.gz`` whole; None for
    another kind."""
    name = path.name.lower()
    rows = (*JSON_SUFFIXES, PARQUET_SUFFIX, ARROW_SUFFIX)
    endings = [suffix for suffix in rows if name.endswith(suffix)]
    if endings:
        return path.name[-len(max(endings, key=len)) :]
    return path.suffix if is_plain(path) else None


def _rows_reader(path: Path) -> RowsReader | None:
    name = path.name.lower()
    return next((rows for suffix, rows in ROWS.items() if name.endswith(suffix)), None)


def is_plain(path: Path) -> bool:
    """Whether the file is one document."""
    return path.suffix.lower() in PLAIN_SUFFIXES


def read_documents(path: Path, field: TextField) -> Iterator[Document]:
    """Yield the documents of one file in order; ``field`` is the column of the text, or a field
    inside it (``doc.body``).

    Raises DataFileError, which names the file and the offset, line or column at fault.
    """
    try:
        if rows := _rows_reader(path):
            for place, text in rows(path, field):
                yield Document.of_text(place, text)
        else:
            yield Document(str(path), lambda: _file_blocks(path))
    except OSError as error:  # gzip.BadGzipFile is one, too
        raise _unreadable(path, error) from error


def _file_blocks(path: Path) -> Iterator[str]:
    """The text of a file; a byte-order mark at its beginning is no part of it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(BLOCK)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise not_utf8(path, error, offset - pending) from error
                yield text if offset else text.removeprefix("\ufeff")
                offset += len(data)
                if not data:
                    return
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataFileError:
    return DataFileError(f"cannot read the data file {path}: {error}")
