"""From plain nested mappings (YAML, Hydra's result) to the typed config, with types and declared
ranges checked."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from questtrain.config.ranges import check_fields, check_value, rules_of, shown
from questtrain.config.schema import TrainConfig
from questtrain.config.yaml_fault import yaml_fault
from questtrain.errors import UserError, suggestion

Config = TypeVar("Config")

NOT_SET = "???"
"""How YAML files mark a value that the user must give (OmegaConf's convention)."""

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def config_from_mapping(kind: type[Config], mapping: Mapping[str, Any]) -> Config:
    """Build a config dataclass; UserError names an unknown key, a missing one, a wrong type, or a
    value that the field's declaration rules out."""
    config: Config = _build(kind, mapping, "")
    check_fields(config)
    return config


def read_config(path: Path) -> TrainConfig:
    """Read a run's ``config.yaml``."""
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a run: it holds no {path.name}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(yaml_fault(error, path)) from error
    if not isinstance(mapping, dict):
        raise UserError(f"{path} holds no configuration.")
    try:
        return config_from_mapping(TrainConfig, mapping)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_setting(kind: Any, key: str, value: Any) -> None:
    """Raise UserError unless ``value`` may stand in the setting of that dotted name."""
    *groups, name = key.split(".")
    for group in groups:
        kind = group_kind(_hints(kind)[group])
    check_value(rules_of(kind)[name], key, _convert(value, _hints(kind)[name], key))


def setting_names(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a config dataclass: 'lr', 'optim.beta1', …; a group that may
    be null is a setting, too."""
    names = []
    for name, hint in _hints(kind).items():
        group = group_kind(hint)
        if group is not hint:
            names.append(prefix + name)
        if group is not None:
            names += setting_names(group, f"{prefix}{name}.")
    return names


def group_kind(hint: Any) -> Any:
    """The dataclass of a setting that is a group, or may be one; None of all others."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if is_dataclass(option)), None)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping → {'model.hidden_size': 640, …}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _build(kind: Any, mapping: Any, prefix: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={mapping!r} must be a group of settings.")
    hints = _hints(kind)
    for key in mapping:
        if key not in hints:
            advice = suggestion(f"{prefix}{key}", [prefix + name for name in hints])
            raise UserError(f"unknown setting '{prefix}{key}'.{advice}")
    values = {}
    for field in fields(kind):
        if mapping.get(field.name, NOT_SET) != NOT_SET:
            values[field.name] = _convert(
                mapping[field.name], hints[field.name], prefix + field.name
            )
        elif field.name in mapping or _is_required(field):
            raise UserError(f"{prefix}{field.name} is not set; give {prefix}{field.name}=….")
    return kind(**values)


def _plain_mapping(value: Any, key: str) -> dict[str, Any]:
    """Names of the user's own with a text, number or truth value each."""
    if not isinstance(value, Mapping):
        raise UserError(f"{key}={value!r} must be a mapping: {key}={{name: value}}.")
    for name, entry in value.items():
        if not isinstance(entry, (str, int, float, bool)):
            raise UserError(f"{key}.{name}={entry!r} must be text, a number, true or false.")
    return {str(name): entry for name, entry in value.items()}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a config dataclass's fields."""
    return typing.get_type_hints(kind)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, hint: Any, key: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return _build(hint, value, key + ".")
    if typing.get_origin(hint) is list:
        items = value if isinstance(value, list) else [value]
        return [_convert(item, typing.get_args(hint)[0], key) for item in items]
    if typing.get_origin(hint) is dict:
        return _plain_mapping(value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is str and isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if type(value) is not hint:
        given = shown(value) if isinstance(value, int | float) else repr(value)
        raise UserError(f"{key}={given} must be {_KINDS[hint]}.")
    return value


def _float(value: int) -> float:
    """The number, infinite where no float is as large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
