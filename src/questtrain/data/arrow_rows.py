"""Rows of the ``.arrow`` files that Hugging Face `datasets` writes: its cache, and what its
``save_to_disk`` leaves. They are mapped into memory, not loaded, and only the text is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from questtrain.data.text_rows import no_field, text_of
from questtrain.errors import UserError

ARROW_SUFFIX = ".arrow"


def arrow_rows(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each row; UserError names the file, and the row."""
    from datasets import Dataset

    path.open("rb").close()  # the system's own errors are said elsewhere
    try:
        rows: Any = Dataset.from_file(str(path))
    except Exception as error:  # pyarrow lets errors of many kinds through
        raise UserError(
            f"the data file {path} is damaged or no Arrow file of the library datasets: {error}"
        ) from error
    names = list(rows.column_names)
    column = text_field if text_field in names else text_field.partition(".")[0]
    if column not in names:
        raise no_field(str(path), text_field, names)
    for number, row in enumerate(rows.select_columns([column]), start=1):
        place = f"{path}, row {number}"
        yield place, text_of(row, place, text_field)
