"""What rows of every format have in common: how the text is found in one, and what is wrong with
it if it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from questtrain.errors import UserError, suggestion


class NotUtf8Error(UserError):
    """A file, or a row of it, is not UTF-8 text."""


def not_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> NotUtf8Error:
    """The error for bytes that stand ``offset`` bytes into the file."""
    return NotUtf8Error(
        f"the data file {path} is not UTF-8 text: invalid byte 0x{error.object[error.start]:02x} "
        f"at byte offset {offset + error.start}. Convert it, or leave it out of data.files; what "
        "is already prepared is kept"
    )


def text_of(row: Any, place: str, text_field: str) -> str:
    """The text of a row; null, at any depth, counts as an empty document.

    ``text_field`` is a key of the row, or a path of keys through nested objects with dots between
    them; a key that holds dots itself comes first. Half a surrogate pair, which a JSON escape can
    hold and no tokenizer takes, becomes a question mark. UserError: no such field, or no text in
    it.
    """
    if not isinstance(row, dict):
        raise UserError(
            f"{place}: expected an object with the field {text_field!r}, found {type(row).__name__}"
        )
    value: Any = row
    for key in [text_field] if text_field in row else text_field.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or key not in value:
            raise no_field(place, text_field, field_names(row))
        value = value[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        held, inside = type(value).__name__, ""
        if isinstance(value, dict):
            held = "an object"
            names = field_names(value, f"{text_field}.")
            inside = f", one of {', '.join(names)}" if names else ""
        raise UserError(
            f"{place}: the field {text_field!r} holds {held}, not text; choose "
            f"the text column with data.text_field=…{inside}"
        )
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def no_field(place: str, text_field: str, names: list[str]) -> UserError:
    """The error for a field that is not among ``names``."""
    return UserError(
        f"{place}: no field {text_field!r}; choose data.text_field from {', '.join(names)}."
        + suggestion(text_field, names)
    )


def field_names(row: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of a row's fields; a nested object's stand in its place."""
    names = []
    for key, value in row.items():
        name = f"{prefix}{key}"
        names += field_names(value, f"{name}.") if isinstance(value, dict) and value else [name]
    return names
