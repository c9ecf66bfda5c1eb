"""JSON rows: ``.jsonl``, ``.ndjson`` and ``.json`` files, plain or compressed.

A file is JSON lines, or one array of objects. It is read line by line by the standard library: the
errors can then name the line, and it is several times faster than building tables of all columns.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from questtrain.data.json_array import DamagedArrayError, array_elements
from questtrain.data.text_rows import DataFileError, TextField, not_utf8, text_of

COMPRESSIONS = (".gz", ".zst")
JSON_SUFFIXES = tuple(
    name + compression
    for compression in ("", *COMPRESSIONS)
    for name in (".jsonl", ".ndjson", ".json")
)

BLOCK_BYTES = 1 << 20


def json_rows(path: Path, field: TextField) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each row; DataFileError names the place."""
    for place, row in _rows(path):
        yield place, text_of(row, place, field)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        offset = 0
        for number, line in enumerate(_lines(file, path), start=1):
            text = _decode(line, path, offset)
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if number == 1 and text.lstrip().startswith("["):
                yield from _array(chain([text], _blocks(file, path, offset)), path)
                return
            if text.strip():
                place = f"{path}, line {number}"
                yield place, _parse(text, place)


def _array(blocks: Iterator[str], path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for number, row in enumerate(array_elements(blocks), start=1):
            yield f"{path}, row {number}", row
    except DamagedArrayError as error:
        raise DataFileError(
            f"{path}, row {number + 1} of the array: damaged JSON ({error}). Repair or remove "
            "that row"
        ) from error
    except RecursionError as error:
        raise _too_deep(f"{path}, row {number + 1}") from error


def _blocks(file: BinaryIO, path: Path, offset: int) -> Iterator[str]:
    """The rest of the file, some lines at a time."""
    lines: list[bytes] = []
    size = 0
    for line in chain(_lines(file, path), [b""]):
        lines.append(line)
        size += len(line)
        if size >= BLOCK_BYTES or not line:
            yield _decode(b"".join(lines), path, offset)
            offset += size
            lines, size = [], 0


def _open(path: Path) -> BinaryIO:
    """The file's uncompressed bytes."""
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            import pyarrow

            # Buffered: it has no lines of its own. Several frames in a row are one stream to it.
            return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(path, compression="zstd")))
        case _:
            return path.open("rb")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, zlib.error) as error:
        raise _cut_off(path, error) from error
    except OSError as error:
        if path.suffix.lower() == ".zst" and error.errno is None:  # the decoder's, not the system's
            raise _cut_off(path, error) from error
        raise


def _cut_off(path: Path, error: Exception) -> DataFileError:
    advice = ""
    if "memory" in str(error):
        advice = (
            ". It was compressed with a window of more than 128 MiB: write it anew, "
            f"`zstd -d --long=31 --stdout {path.name} | zstd -o new{''.join(path.suffixes)}`"
        )
    return DataFileError(
        f"the data file {path} is damaged or not completely downloaded: {error}{advice}"
    )


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, offset) from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        column = min(error.pos, len(text.rstrip())) + 1  # the end of the line is no next line here
        raise DataFileError(
            f"{place}: damaged JSON ({error.msg} at column {column}). Repair or remove that line"
        ) from error
    except RecursionError as error:
        raise _too_deep(place) from error


def _too_deep(place: str) -> DataFileError:
    return DataFileError(f"{place}: JSON nested too deeply to read. Remove it")
