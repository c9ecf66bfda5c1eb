"""Parquet rows: only the column of the text is read, whatever else the file holds.

`pyarrow.parquet.ParquetFile` and not a reader of whole tables: that must understand every column
(maps, features of a library's newer versions) to give one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from questtrain.data.text_rows import (
    DataFileError,
    NotUtf8Error,
    TextField,
    no_field,
    text_of,
)

PARQUET_SUFFIX = ".parquet"
BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
"""Of a column that is read at a time; without it a whole row group of it is held."""


def parquet_rows(path: Path, field: TextField) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each row; a file may hold none. DataFileError names the
    file, and the row."""
    number = 0
    try:
        for column, value in _values(path, field):
            number += 1
            place = f"{path}, row {number}"
            if isinstance(value, bytes):  # text, as writers without logical types leave it
                value = _decoded(value, place, field)
            if not isinstance(value, str):  # null, an object, or no text
                value = text_of({column: value}, place, field)
            yield place, value
    except Exception as error:  # pyarrow lets errors of many kinds through
        # With a number it is the system's: the file cannot be opened.
        if isinstance(error, DataFileError) or getattr(error, "errno", None) is not None:
            raise
        kind = NotUtf8Error if isinstance(error, UnicodeDecodeError) else DataFileError
        raise kind(
            f"the data file {path} is damaged or no parquet file, after row {number}: {error}"
        ) from error


def _values(path: Path, field: TextField) -> Iterator[tuple[str, Any]]:
    """(column, value) of each row; a nested field is inside the value of its outermost column."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
        names = _names(file.schema_arrow)
        if field.path not in names and field.path not in file.schema_arrow.names:
            raise no_field(str(path), field, names)
        for batch in file.iter_batches(BATCH_ROWS, columns=[field.path], use_threads=False):
            # A dotted name that is a column's own is found beside one that is a path.
            own = field.path in batch.schema.names
            column = field.path if own else field.path.partition(".")[0]
            for value in batch.column(column).to_pylist():
                yield column, value


def _names(fields: Iterable[Any], prefix: str = "") -> list[str]:
    """The columns as a `TextField` takes them: dotted names of what stands in structures."""
    from pyarrow import types

    names = []
    for field in fields:
        name = f"{prefix}{field.name}"
        names += _names(field.type, f"{name}.") if types.is_struct(field.type) else [name]
    return names


def _decoded(value: bytes, place: str, field: TextField) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{place}: the field {field.path!r} is not UTF-8 text") from error
