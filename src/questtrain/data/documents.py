"""Readers: a data file → its documents (str).

Plain text is one document a file; JSON and parquet are one document a row, read by the library
`datasets`. What it refuses of a JSON file is read line by line, because its errors do not say where
a file is damaged; compressed JSON lines (C4's layout) are, because that is several times faster.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from questtrain.errors import UserError

CODE_SUFFIXES = frozenset(
    {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".js", ".ts", ".java"}
    | {".go", ".rs", ".sh", ".sql", ".rb", ".lua"}
)
PLAIN_SUFFIXES = CODE_SUFFIXES | frozenset(
    {".txt", ".text", ".md", ".rst", ".tex", ".html", ".css", ".toml", ".yaml", ".yml"}
    | {".cfg", ".ini"}
)
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PARQUET_SUFFIX = ".parquet"


class NotUtf8Error(UserError):
    """A file, or a row of it, is not UTF-8 text."""


def check_suffix(path: Path) -> None:
    """Raise UserError unless `read_documents` knows this kind of file."""
    if not (_is_json(path) or _is_parquet(path) or path.suffix.lower() in PLAIN_SUFFIXES):
        raise UserError(
            f"unknown kind of data file {path}: documents come from "
            f"{', '.join(JSON_SUFFIXES)}, {PARQUET_SUFFIX} (one a row) or "
            f"{', '.join(sorted(PLAIN_SUFFIXES))} (one a file); token ids in .bin files are "
            "data=tokens"
        )


def read_documents(path: Path, text_field: str) -> Iterator[str]:
    """Yield the documents of one file in order; ``text_field`` names the column of the text.

    Raises NotUtf8Error or UserError, which name the file and the offset, line or column at fault.
    """
    try:
        if path.name.lower().endswith(".gz"):
            yield from _json_documents(path, text_field)
        elif _is_json(path):
            yield from _plain_json_documents(path, text_field)
        elif _is_parquet(path):
            yield from _parquet_documents(path, text_field)
        else:
            data = path.read_bytes()
            yield _decode(data, path, offset=0).removeprefix("\ufeff")
    except OSError as error:  # gzip.BadGzipFile is one, too
        raise UserError(f"cannot read the data file {path}: {error}") from error


def _is_json(path: Path) -> bool:
    return path.name.lower().endswith(JSON_SUFFIXES)


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(PARQUET_SUFFIX)


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(
            f"the data file {path} is not UTF-8 text: invalid byte 0x{data[error.start]:02x} at "
            f"byte offset {offset + error.start}. Convert it, or leave it out of data.files; what "
            "is already prepared is kept"
        ) from error


def _json_documents(path: Path, text_field: str) -> Iterator[str]:
    for place, row in _json_rows(path):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, {place}: expected an object with the field {text_field!r}, found "
                f"{type(row).__name__}"
            )
        if text_field not in row:
            raise _no_field(f"{path}, {place}", text_field, list(row))
        yield _as_text(row[text_field], f"{path}, {place}", text_field)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, value) of each row: JSON lines, or one array of objects."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with cast(BinaryIO, opener(path, "rb")) as file:
        offset = 0
        for number, line in enumerate(_lines(file, path), start=1):
            text = _decode(line, path, offset)
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
                if text.lstrip().startswith("["):
                    rest = _decode(b"".join(_lines(file, path)), path, offset)
                    array = _parse(text + rest, f"{path}, the array from line 1")
                    yield from ((f"row {i}", row) for i, row in enumerate(array, start=1))
                    return
            if text.strip():
                yield f"line {number}", _parse(text, f"{path}, line {number}")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, zlib.error) as error:
        raise UserError(
            f"the data file {path} is damaged or not completely downloaded: {error}"
        ) from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: damaged JSON ({error.msg} at column {error.colno}). Repair or remove that "
            "line; what is already prepared is kept"
        ) from error


def _plain_json_documents(path: Path, text_field: str) -> Iterator[str]:
    """Documents of an uncompressed JSON file, through `datasets` as far as it gets.

    From the first row that it refuses, or whose text it takes for null (it does not tell null from
    absent), the file is read line by line: that copes, or names the place.
    """
    read = 0
    with contextlib.suppress(Exception):  # it lets its parsers' errors of many kinds through
        for row in _table_rows("json", path):
            if not isinstance(row.get(text_field), str):
                break
            yield row[text_field]
            read += 1
        else:
            return
    yield from islice(_json_documents(path, text_field), read, None)


def _parquet_documents(path: Path, text_field: str) -> Iterator[str]:
    number = 0
    try:
        for number, row in enumerate(_table_rows("parquet", path), start=1):
            if text_field not in row:
                raise _no_field(str(path), text_field, list(row))
            yield _as_text(row[text_field], f"{path}, row {number}", text_field)
    except UserError:
        raise
    except Exception as error:
        kind = NotUtf8Error if isinstance(error, UnicodeDecodeError) else UserError
        raise kind(
            f"the data file {path} is damaged or no parquet file, after row {number}: {error}"
        ) from error


def _table_rows(builder: str, path: Path) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its errors are reported by us
    yield from load_dataset(builder, data_files=str(path), split="train", streaming=True)


def _as_text(value: Any, place: str, text_field: str) -> str:
    """The text of a row; null counts as an empty document."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{place}: the field {text_field!r} holds {type(value).__name__}, not text; choose "
            "the text column with data.text_field=…"
        )
    return value


def _no_field(place: str, text_field: str, columns: list[str]) -> UserError:
    return UserError(
        f"{place}: no field {text_field!r}; choose data.text_field from {', '.join(columns)}"
    )
