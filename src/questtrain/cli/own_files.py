"""YAML files of the user's own (``--config-dir``): read before Hydra does, so that what is wrong in
one is said with its file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from questtrain.config.loading import check_setting, flatten, setting_names
from questtrain.config.yaml_fault import yaml_fault
from questtrain.errors import UserError, suggestion

OF_HYDRA = "defaults"
"""The one key of a file that is no setting: other files that it builds on."""


def own_file(config_dir: str | None, group: str, choice: str) -> Path | None:
    """The user's file of that choice; None where it is not one of theirs."""
    if config_dir is None or not choice or ".." in Path(choice).parts:
        return None
    path = Path(config_dir) / group / f"{choice}.yaml"
    return path if path.is_file() else None


def read_own_file(path: Path) -> tuple[str, yaml.MappingNode]:
    """The text of a YAML file and its tree; UserError with file and line where it is none, or
    holds something else than settings."""
    text = _text(path)
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(yaml_fault(error, path)) from error
    if not isinstance(tree, yaml.MappingNode):
        kinds = {yaml.ScalarNode: "a single value", yaml.SequenceNode: "a list"}
        found = kinds.get(type(tree), "nothing")
        raise UserError(f"{path}, line 1: it holds {found} where settings are due (key: value).")
    return text, tree


def check_own_file(path: Path, group: str, kind: type[Any]) -> None:
    """UserError, with file and line, for a key that is no setting or a value that it cannot have.

    ``kind`` is the config's dataclass. Values that Hydra fills in (``${…}``, ``???``) are judged
    when it has.
    """
    text, tree = read_own_file(path)
    package = _package(text)
    prefix = {None: f"{group}.", "_group_": f"{group}.", "_global_": ""}.get(package, f"{package}.")
    try:
        leaves = list(_leaves(tree))
    except UserError as error:
        raise UserError(f"{path}, {error}") from error
    names, values = setting_names(kind), _values(text, path)
    for key, line in leaves:
        if key.split(".")[0] == OF_HYDRA:
            continue
        try:
            _check_key(prefix + key, names, package)
            value = values.get(key)
            if not (isinstance(value, str) and ("${" in value or value == "???")):
                check_setting(kind, prefix + key, value)
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(yaml_fault(error, path)) from error


def _package(text: str) -> str | None:
    """Where Hydra puts the file's keys: what ``# @package`` says in its first lines (a comment
    before it hides it); None without it, which is below the group's name."""
    for line in filter(str.strip, text.splitlines()):
        header = re.fullmatch(r"\s*#\s*@(\w+)\s+(\S+)\s*", line)
        if header is None:
            break
        if header[1] == "package":
            return header[2]
    return None


def _check_key(key: str, names: list[str], package: str | None) -> None:
    if key in names:
        return
    if any(name.startswith(f"{key}.") for name in names):
        raise UserError(f"{key} must be a group of settings.")
    advice = suggestion(key, names)
    if package is None:
        advice = " A file with settings of several groups begins with '# @package _global_'."
    raise UserError(f"unknown setting '{key}'.{advice}")


def _values(text: str, path: Path) -> dict[str, Any]:
    """Dotted key → value, as OmegaConf reads them (``1e-3`` is a number)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        mapping = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.YAMLError as error:
        raise UserError(yaml_fault(error, path)) from error
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(mapping, dict), path
    return flatten({str(key): value for key, value in mapping.items()})


def _leaves(
    node: yaml.MappingNode, prefix: str = "", above: tuple[yaml.Node, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Dotted keys of what is no mapping, and their lines, from 1."""
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if any(value is other for other in (node, *above)):
            raise UserError(f"line {line}: {name} holds itself.")
        if isinstance(value, yaml.MappingNode):
            yield from _leaves(value, f"{name}.", (node, *above))
        else:
            yield name, line
