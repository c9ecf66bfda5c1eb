"""What is wrong with a YAML file, in one line: file, line, column, and what is expected there."""

from __future__ import annotations

from pathlib import Path

import yaml

Fault = yaml.YAMLError | UnicodeDecodeError | RecursionError
"""What the YAML library, and reading a file for it, raise."""


def yaml_fault(error: Fault, path: Path | None = None) -> str:
    """``quiz.yaml, line 3, column 1: no YAML: expected ',' or ']' …``. The file is ``path``, or the
    one that the error names (which ``path`` includes)."""
    match error:
        case yaml.MarkedYAMLError(problem_mark=mark) if mark is not None:
            place = f"{_file(mark.name, path)}, {_place(mark.line, mark.column)}"
            begun = f" ({error.context}{_begun(error)})" if error.problem and error.context else ""
            return f"{place}: no YAML: {error.problem or error.context}{begun}."
        case yaml.reader.ReaderError():
            file = _file(error.name, path)
            return _no_text(file, int(error.position), error.encoding, str(error.reason))
        case UnicodeDecodeError():
            return _no_text(_file("<", path), error.start, "utf-8", error.reason)
        case RecursionError():
            return f"{_file('<', path)}: nested too deeply to read."
        case _:
            return f"{_file('<', path)} cannot be read: {' '.join(str(error).split())}."


def _file(name: str, path: Path | None) -> Path | str:
    """The library names a stream by its file, and a text by ``<unicode string>``."""
    return Path(name) if not name.startswith("<") else path or "a YAML file"


def _place(line: int, column: int) -> str:
    """Both counted from 0, as the library does."""
    return f"line {line + 1}, column {column + 1}"


def _begun(error: yaml.MarkedYAMLError) -> str:
    mark = error.context_mark
    return "" if mark is None else f" that begins in {_place(mark.line, mark.column)}"


def _no_text(file: Path | str, position: int, encoding: str, reason: str) -> str:
    """``position`` counts characters where the library had a text, else bytes."""
    what = "no text in UTF-8" if encoding == "utf-8" else "no YAML"
    if not isinstance(file, Path):
        return f"{file}: {what}: {reason}."
    data = file.read_bytes()
    if encoding == "unicode":
        before = data.decode("utf-8", "replace")[:position]
    else:
        before = data[:position].decode("utf-8", "replace")
    place = _place(before.count("\n"), len(before) - (before.rfind("\n") + 1))
    return f"{file}, {place}: {what}: {reason}."
