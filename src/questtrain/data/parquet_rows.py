"""Parquet rows: only the column of the text is read, whatever else the file holds.

`pyarrow.parquet.ParquetFile` and not a reader of whole tables: that must understand every column
(maps, features of a library's newer versions) to give one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from questtrain.data.text_rows import NotUtf8Error, as_text, no_field, text_of
from questtrain.errors import UserError

PARQUET_SUFFIX = ".parquet"
BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
"""Of a column that is read at a time; without it a whole row group of it is held."""


def is_parquet(path: Path) -> bool:
    """Whether the name is one of a parquet file."""
    return path.name.lower().endswith(PARQUET_SUFFIX)


def parquet_rows(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each row; a file may hold none. NotUtf8Error and UserError name
    the file, and the row."""
    number = 0
    try:
        for value in _values(path, text_field):
            number += 1
            place = f"{path}, row {number}"
            yield place, _text(value, place, text_field)
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:  # the system's: the file cannot be opened
            raise
        raise _damaged(path, number, error) from error
    except Exception as error:  # pyarrow lets errors of many kinds through
        raise _damaged(path, number, error) from error


def _values(path: Path, text_field: str) -> Iterator[Any]:
    """The text of each row, or what stands in its place; of a nested field, the object that the
    row holds it in."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
        names = _names(file.schema_arrow)
        if text_field not in names and text_field not in file.schema_arrow.names:
            raise no_field(str(path), text_field, names)
        for batch in file.iter_batches(BATCH_ROWS, columns=[text_field], use_threads=False):
            # A dotted name that is a column's own is found beside one that is a path.
            own = text_field in batch.schema.names
            column = text_field if own else text_field.partition(".")[0]
            for value in batch.column(column).to_pylist():
                yield value if own else {column: value}


def _names(fields: Iterable[Any], prefix: str = "") -> list[str]:
    """The columns as ``data.text_field`` takes them: dotted names of what stands in structures."""
    from pyarrow import types

    names = []
    for field in fields:
        name = f"{prefix}{field.name}"
        names += _names(field.type, f"{name}.") if types.is_struct(field.type) else [name]
    return names


def _text(value: Any, place: str, text_field: str) -> str:
    if isinstance(value, bytes):  # text, as writers without logical types leave it
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotUtf8Error(f"{place}: the field {text_field!r} is not UTF-8 text") from error
    nested = isinstance(value, dict) and "." in text_field
    return (text_of if nested else as_text)(value, place, text_field)


def _damaged(path: Path, rows: int, error: Exception) -> UserError:
    kind = NotUtf8Error if isinstance(error, UnicodeDecodeError) else UserError
    return kind(f"the data file {path} is damaged or no parquet file, after row {rows}: {error}")
