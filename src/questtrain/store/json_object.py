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
from typing import Any, NoReturn, TypeVar

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
    """The value of a JSON text; ValueError if it is none, NaN and infinity among them."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def read_json_object(path: Path, remedy: str = "") -> JsonObject:
    """The object in ``path``; ``remedy`` ends every message about it.

    DamagedJson for a file that cannot be read or holds none; FileNotFoundError passes.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedJson(path, " ".join(str(error).split()), remedy) from error
    if not isinstance(value, dict):
        raise DamagedJson(path, "it holds no object", remedy)
    return JsonObject(value, path, remedy)


@dataclass(frozen=True)
class JsonObject:
    """An object of the file ``path``; DamagedJson for a value that is not what is asked for."""

    values: Mapping[str, Any]
    path: Path
    remedy: str = ""

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
        """None where the key is missing or null."""
        return None if self.values.get(key) is None else self.take(key, kind, low, high)

    def items(self, key: str, kind: type[Value], low: float = -math.inf) -> list[Value]:
        """A list that is not empty."""
        items = self.take(key, list)
        if not items:
            raise self.damaged(f"{key!r} is empty")
        return [self.check(key, item, kind, low) for item in items]

    def objects(self, key: str) -> list[JsonObject]:
        """A list of objects that is not empty."""
        return [JsonObject(item, self.path, self.remedy) for item in self.items(key, dict)]

    def inside(self, key: str) -> JsonObject:
        """The object of ``key``."""
        return JsonObject(self.take(key, dict), self.path, self.remedy)

    def check(
        self,
        key: str,
        value: Any,
        kind: type[Value],
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Value:
        """``value`` as one of ``kind``; a whole number counts as a number, nothing else as another
        kind."""
        if kind is float and type(value) is int:
            value = _as_float(value)
        if type(value) is not kind:
            raise self.damaged(f"{key!r} holds {_short(value)}, not {_KINDS[kind]}")
        if isinstance(value, (int, float)) and not _lies_between(value, low, high):
            raise self.damaged(f"{key!r} holds {_short(value)}, which cannot be")
        checked: Value = value
        return checked

    def damaged(self, problem: str) -> DamagedJson:
        return DamagedJson(self.path, problem, self.remedy)


def _lies_between(value: float, low: float, high: float) -> bool:
    """Whether it is finite, too."""
    return low <= value <= high and abs(value) < math.inf


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
