"""What rows of every format have in common: how the text is found in one, and what is wrong with
it if it is not there.

Errors say what is wrong in which place and how the file is mended; what else there is to do knows
who reads it (`questtrain.data.piece`, which prepares shards of it; `questtrain eval`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questtrain.errors import UserError, suggestion


@dataclass(frozen=True)
class TextField:
    """Where the text of a row is: a key, or keys through nested objects with dots between them;
    ``setting`` is what the user says so with."""

    path: str
    setting: str = "data.text_field"


class DataFileError(UserError):
    """A file does not hold the documents that it should."""


class NotUtf8Error(DataFileError):
    """A file, or a row of it, is not UTF-8 text."""


def not_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> NotUtf8Error:
    """The error for bytes that stand ``offset`` bytes into the file."""
    return NotUtf8Error(
        f"the data file {path} is not UTF-8 text: invalid byte 0x{error.object[error.start]:02x} "
        f"at byte offset {offset + error.start}. Convert it, or leave it out"
    )


def text_of(row: Any, place: str, field: TextField) -> str:
    """The text of a row; null, at any depth, counts as an empty document.

    A key that holds dots itself comes before a path of keys. Half a surrogate pair, which a JSON
    escape can hold and no tokenizer takes, becomes a question mark. DataFileError: no such field,
    or no text in it.
    """
    if not isinstance(row, dict):
        raise DataFileError(
            f"{place}: expected an object with the field {field.path!r}, found {type(row).__name__}"
        )
    value: Any = row
    for key in [field.path] if field.path in row else field.path.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or key not in value:
            raise no_field(place, field, field_names(row))
        value = value[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        held, inside = type(value).__name__, ""
        if isinstance(value, dict):
            held = "an object"
            names = field_names(value, f"{field.path}.")
            inside = f", one of {', '.join(names)}" if names else ""
        raise DataFileError(
            f"{place}: the field {field.path!r} holds {held}, not text; choose "
            f"the text column with {field.setting}=…{inside}"
        )
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def no_field(place: str, field: TextField, names: list[str]) -> DataFileError:
    """The error for a field that is not among ``names``."""
    return DataFileError(
        f"{place}: no field {field.path!r}; choose {field.setting} from {', '.join(names)}."
        + suggestion(field.path, names)
    )


def field_names(row: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of a row's fields; a nested object's stand in its place."""
    names = []
    for key, value in row.items():
        name = f"{prefix}{key}"
        names += field_names(value, f"{name}.") if isinstance(value, dict) and value else [name]
    return names
