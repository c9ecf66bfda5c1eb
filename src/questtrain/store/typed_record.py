"""From an object of a JSON file to the dataclass that wrote it, every field's type checked."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

from questtrain.store.json_object import JsonObject

Record = TypeVar("Record")


def build_record(
    kind: type[Record], content: JsonObject, low: float = -float("inf"), **given: Any
) -> Record:
    """A ``kind`` of the object's values, numbers at least ``low``; ``given`` are fields that the
    file does not hold. Keys that are no fields are passed over.

    DamagedJson names the field that is missing or of another type.
    """
    hints = typing.get_type_hints(kind)
    values = dict(given)
    for field in fields(kind):  # type: ignore[arg-type]
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if field.name in given or (has_default and field.name not in content.values):
            continue
        values[field.name] = _typed(content, field.name, hints[field.name], low)
    return kind(**values)


def _typed(content: JsonObject, key: str, hint: Any, low: float) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType) and type(None) in arguments:
        if content.take(key, object) is None:
            return None
        hint = next(option for option in arguments if option is not type(None))
        return _typed(content, key, hint, low)
    if hint is Any:
        return content.take(key, object)
    if origin is Literal:
        value = content.take(key, object)
        if value not in arguments:
            raise content.damaged(f"{key!r} holds {value!r}, none of {', '.join(arguments)}")
        return value
    if origin in (list, tuple):
        items = content.listed(key)
        return origin(_typed(items, name, arguments[0], low) for name in items.values)
    if origin in (dict, Mapping):
        entries = content.inside(key)
        return {name: _typed(entries, name, arguments[1], low) for name in entries.values}
    if is_dataclass(hint):
        return build_record(typing.cast(type[Any], hint), content.inside(key), low)
    return content.take(key, hint, low)
