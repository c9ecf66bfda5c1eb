"""The one rule for names that become part of a path: they stay inside the folder they are put in.

Run names, sizes, data sets, methods and sweeps have such names. A run's may be nested (``a/b``),
the others are one folder or file, or a part of its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from questtrain.config.ranges import Text, shown
from questtrain.errors import UserError

MAX_NAME_BYTES = 240
"""Of one folder: file systems have 255, and what is made of a name is a little longer."""


@dataclass(frozen=True)
class PathName:
    """A name that becomes a folder; with ``nested``, several separated by slashes."""

    nested: bool = False

    def check(self, key: str, value: str) -> None:
        Text().check(key, value)
        parts = value.split("/") if self.nested else [value]
        reason = next(filter(None, map(_fault, parts)), None)
        if value.startswith("/"):
            reason = "it is an absolute path"
        if reason is not None:
            nested = "; a/b makes folders" if self.nested else ""
            raise UserError(
                f"{key}={shown(value)!r} is no name: {reason}. A name becomes a folder; it must not"
                f" lead out of the one it is put in: letters, digits, - _ .{nested}."
            )

    def __str__(self) -> str:
        return "a name, which may be nested (a/b)" if self.nested else "a name without /"


def _fault(part: str) -> str | None:
    """Why the name of one folder is none; None where it is."""
    if not part.strip():
        return "a part of it is empty"
    if part in (".", ".."):
        return f"{part} is a folder that is there already"
    if PurePath(part).name != part:
        return "it holds a /"
    if part.startswith("-"):
        return "it begins with a -, as options do"
    if len(part.encode()) > MAX_NAME_BYTES:
        return f"it has more than {MAX_NAME_BYTES} bytes"
    return None
