"""Rows of the ``.arrow`` files that Hugging Face `datasets` writes: its cache, and what its
``save_to_disk`` leaves. They are mapped into memory, not loaded, and only the text is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from questtrain.data.text_rows import DataFileError, TextField, no_field, text_of

ARROW_SUFFIX = ".arrow"


def arrow_rows(path: Path, field: TextField) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each row; DataFileError names the file, and the row."""
    from datasets import Dataset

    path.open("rb").close()  # the system's own errors are said elsewhere
    try:
        rows: Any = Dataset.from_file(str(path))
    except Exception as error:  # pyarrow lets errors of many kinds through
        raise DataFileError(
            f"the data file {path} is damaged or no Arrow file of the library datasets: {error}"
        ) from error
    names = list(rows.column_names)
    column = field.path if field.path in names else field.path.partition(".")[0]
    if column not in names:
        raise no_field(str(path), field, names)
    for number, row in enumerate(rows.select_columns([column]), start=1):
        place = f"{path}, row {number}"
        yield place, text_of(row, place, field)
