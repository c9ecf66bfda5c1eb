"""YAML files of tasks: what is wrong with one, by file, line and column.

The harness passes over a damaged file in a folder (``include_path``) in silence, and of one that is
named it raises what the YAML library does, whose first line does not say where.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from questtrain.config.yaml_fault import yaml_fault
from questtrain.errors import UserError

NAMES = ("task", "group", "class", "include")
"""A key without which a file is no task: of a task, a group, a task in Python, or of another file
that may hold them."""


def check_task_file(path: Path) -> bool:
    """Whether the file is one task, which needs no other that is known by name; UserError unless it
    is YAML that may be a task or a group of tasks."""
    root = _composed(path)
    if not isinstance(root, yaml.MappingNode):
        held = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a text"}.get(type(root), "nothing")
        raise UserError(
            f"{path} is no task: lines like `task: NAME` are expected, and it holds {held}."
        )
    keys = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    if not any(name in keys for name in NAMES):
        raise UserError(f"{path} names no task: a line `task: NAME` is expected, or `group: NAME`.")
    return isinstance(keys.get("task"), yaml.ScalarNode) and "group" not in keys


def first_damaged(folder: Path) -> str | None:
    """What is wrong with the first file in a folder, below it too, that is no YAML."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            _composed(path)
        except UserError as error:
            return str(error)
    return None


def _composed(path: Path) -> yaml.Node | None:
    """The YAML of a file, whose tags are not followed; UserError where there is none."""
    try:
        return yaml.compose(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(yaml_fault(error, path)) from error
