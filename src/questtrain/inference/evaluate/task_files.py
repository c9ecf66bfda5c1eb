"""YAML files of tasks: what is wrong with one, by file, line and column.

The harness passes over a damaged file in a folder (``include_path``) in silence, and of one that is
named it raises what the YAML library does, whose first line does not say where.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from questtrain.errors import UserError

NAMES = ("task", "group", "class", "include")
"""A key without which a file is no task: of a task, a group, a task in Python, or of another file
that may hold them."""


def check_task_file(path: Path) -> None:
    """UserError unless the file is YAML that may be a task or a group of tasks."""
    try:
        root = yaml.compose(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{yaml_problem(error, path)}.") from error
    if not isinstance(root, yaml.MappingNode):
        held = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a text"}.get(type(root), "nothing")
        raise UserError(
            f"{path} is no task: lines like `task: NAME` are expected, and it holds {held}."
        )
    keys = [key.value for key, _ in root.value]
    if not any(name in keys for name in NAMES):
        raise UserError(f"{path} names no task: a line `task: NAME` is expected, or `group: NAME`.")


def first_damaged(folder: Path) -> str | None:
    """What is wrong with the first file in a folder, below it too, that is no YAML."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_bytes())
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        except (yaml.YAMLError, RecursionError) as error:
            return yaml_problem(error, path)
    return None


def yaml_problem(error: yaml.YAMLError | RecursionError, path: Path) -> str:
    """``quiz.yaml, line 3, column 1, is no YAML: expected ',' or ']' …``; the file is ``path``, or
    the one that this includes."""
    match error:
        case yaml.MarkedYAMLError(problem=str(problem), problem_mark=mark) if mark is not None:
            where = f"{_file(mark.name, path)}, {_place(mark.line, mark.column)}"
            begun = f" ({error.context}{_begun(error)})" if error.context else ""
            return f"{where}, is no YAML: {problem}{begun}"
        case yaml.reader.ReaderError():
            file = _file(error.name, path)
            return f"{file}, {_place(*_line_of(error, file))}, is no YAML: {error.reason}"
        case RecursionError():
            return f"{path} is nested too deeply to read"
        case _:
            return f"{path} is no YAML: {error}"


def _file(name: str, path: Path) -> Path:
    """The library's name of a stream; of bytes it has none."""
    return path if name.startswith("<") else Path(name)


def _begun(error: yaml.MarkedYAMLError) -> str:
    mark = error.context_mark
    return "" if mark is None else f" that begins in {_place(mark.line, mark.column)}"


def _place(line: int, column: int) -> str:
    """Both counted from 0, as the library does."""
    return f"line {line + 1}, column {column + 1}"


def _line_of(error: yaml.reader.ReaderError, path: Path) -> tuple[int, int]:
    """Where a character stands that the library names by its number, or the number of its byte."""
    data = path.read_bytes()
    if error.encoding == "unicode":
        before = data.decode("utf-8", "replace")[: error.position]
    else:
        before = data[: error.position].decode("utf-8", "replace")
    return before.count("\n"), len(before) - (before.rfind("\n") + 1)
