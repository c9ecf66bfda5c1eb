"""Small JSON files of ours, read back: every value's type and bounds are checked as it is taken.

A disk may have damaged a file, or a hand. What cannot be is said in one message with the file and
the field; nothing is believed for being there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from questtrain.errors import UserError

Value = TypeVar("Value")

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class DamagedJson(UserError):
    """A file that holds something else than it should; ``problem`` says what, without the file."""

    def __init__(self, path: Path, problem: str, remedy: str = "") -> None:
        super().__init__(f"{path} is damaged: {problem}.{remedy and ' ' + remedy}")
        self.problem = problem


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError if it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_object(path: Path, remedy: str = "") -> JsonObject:
    """The object in ``path``; ``remedy`` ends every message about it.

    DamagedJson for a file that cannot be read or holds none; FileNotFoundError passes.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        problem = f"it cannot be read as JSON: {' '.join(str(error).split())}"
        raise DamagedJson(path, problem, remedy) from error
    if not isinstance(value, dict):
        raise DamagedJson(path, "it holds no object", remedy)
    return JsonObject(value, path, remedy)


@dataclass(frozen=True)
class JsonObject:
    """An object of the file ``path``; DamagedJson for a value that is not what is asked for.

    ``place`` is where in the file it stands (``A``, ``shards.3``), for messages.
    """

    values: Mapping[str, Any]
    path: Path
    remedy: str = ""
    place: str = ""

    def take(
        self, key: str, kind: type[Value], low: float = -math.inf, high: float = math.inf
    ) -> Value:
        """The value of ``key``; a number between ``low`` and ``high``."""
        if key not in self.values:
            raise self.damaged(f"{key!r} is missing")
        return self.check(key, self.values[key], kind, low, high)

    def take_or_none(
        self, key: str, kind: type[Value], low: float = -math.inf, high: float = math.inf
    ) -> Value | None:
        """None where the value is null."""
        return None if self.values.get(key, ...) is None else self.take(key, kind, low, high)

    def optional(
        self, key: str, kind: type[Value], low: float = -math.inf, high: float = math.inf
    ) -> Value | None:
        """None where the value is null, or there is none."""
        return None if self.values.get(key) is None else self.take(key, kind, low, high)

    def items(self, key: str, kind: type[Value], low: float = -math.inf) -> list[Value]:
        """A list that is not empty."""
        items = self.take(key, list)
        if not items:
            raise self.damaged(f"{key!r} is empty")
        return [self.check(key, item, kind, low) for item in items]

    def objects(self, key: str) -> list[JsonObject]:
        """A list of objects that is not empty."""
        return [self._of(item, f"{key}.{n}") for n, item in enumerate(self.items(key, dict))]

    def inside(self, key: str) -> JsonObject:
        """The object of ``key``."""
        return self._of(self.take(key, dict), key)

    def listed(self, key: str) -> JsonObject:
        """The items of a list, by number."""
        return self._of({str(n): item for n, item in enumerate(self.take(key, list))}, key)

    def _of(self, values: dict[str, Any], key: str) -> JsonObject:
        place = f"{self.place}.{key}" if self.place else key
        return JsonObject(values, self.path, self.remedy, place)

    def check(
        self,
        key: str,
        value: Any,
        kind: type[Value],
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Value:
        """``value`` as one of ``kind`` (``object``: any); a whole number counts as a number,
        nothing else as another kind."""
        if kind is float and type(value) is int:
            value = _as_float(value)
        if kind is not object and type(value) is not kind:
            raise self.damaged(f"{key!r} holds {_short(value)}, not {_KINDS[kind]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.damaged(f"{key!r} holds {_short(value)}, not {_KINDS[float]}")
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise self.damaged(f"{key!r} holds {_short(value)}, which cannot be")
        checked: Value = value
        return checked

    def damaged(self, problem: str) -> DamagedJson:
        where = f"{self.place}: " if self.place else ""
        return DamagedJson(self.path, where + problem, self.remedy)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
