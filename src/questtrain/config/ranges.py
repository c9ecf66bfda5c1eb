"""What a setting is and may be, said where its field is declared: ``beta1: Annotated[float,
Interval("[0, 1)"), "decay of the first moment"]``.

A field's annotation holds its rules, and in words what it is: help pages show both (`about`).
`check_fields` walks over a config dataclass and applies its rules. Text without a rule must not be
empty, and must be printable (`Text`). Rules that concern several settings at once are in
`questtrain.config.validation`.
"""

from __future__ import annotations

import functools
import math
import re
import typing
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

from questtrain.errors import UserError, unknown

LONGEST_SHOWN = 60
"""Characters of a value that a message repeats."""

SIZE = "[1, 2^31)"
"""Of whatever is counted in 32 bits."""

COUNT = "[1, 2^53]"
"""Of whatever is counted: what a float holds exactly, so that every reader of JSON agrees."""

SEED = "[0, 2^64)"


class Rule(Protocol):
    """``check`` raises UserError; as text it is what a table of settings shows."""

    def check(self, key: str, value: Any) -> None: ...


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, in the usual notation: ``[0, 1)`` is 0 ≤ x < 1, ``(0, inf]`` is
    positive, infinity included. ``2^64`` is a power. ``also`` is a number that is valid besides.
    """

    text: str
    also: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest number, whether or not they belong to it."""
        low, high, _, _ = _ends(self.text)
        return low, high

    def check(self, key: str, value: float) -> None:
        low, high, holds_low, holds_high = _ends(self.text)
        above = value > low or (holds_low and value == low)
        below = value < high or (holds_high and value == high)
        if not (above and below) and value != self.also:
            raise UserError(f"{key}={shown(value)} must be {self.words()}.")

    def words(self) -> str:
        """``at least 0 and below 1``."""
        low, high, holds_low, holds_high = _ends(self.text)
        first, last = _spelled_ends(self.text)
        lowest = f"at least {first}" if holds_low else f"more than {first}"
        if low == 0 and not holds_low:
            lowest = "positive"
        highest = f"at most {last}" if holds_high else f"below {last}"
        if math.isinf(high):
            highest = "" if holds_high else "finite"
        also = "" if self.also is None else f", or {self.also:g}"
        return " and ".join(filter(None, (lowest, highest))) + also

    def __str__(self) -> str:
        return self.text if self.also is None else f"{self.text} or {self.also:g}"


@dataclass(frozen=True)
class Choices:
    """One of a few words."""

    names: tuple[str, ...]

    def check(self, key: str, value: str) -> None:
        if value not in self.names:
            raise unknown(key, shown(value), self.names)

    def __str__(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class Form:
    """Text that a regular expression matches as a whole; ``words`` say which."""

    pattern: str
    words: str

    def check(self, key: str, value: str) -> None:
        if not re.fullmatch(self.pattern, value):
            raise UserError(f"unknown {key} {shown(value)!r}: choose {self.words}.")

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Text:
    """Printable text, of one line unless ``lines``; not empty unless ``empty``."""

    empty: bool = False
    lines: bool = False
    longest: int | None = None
    without: str = ""

    def check(self, key: str, value: str) -> None:
        if not value and not self.empty:
            raise UserError(f"{key} is empty: give it a value, or leave {key}= out.")
        for number, character in enumerate(value, 1):
            if not _is_text(character) and not (self.lines and character in "\n\r\t"):
                raise UserError(
                    f"{key}={value[:LONGEST_SHOWN]!r}: its character {number} is none that can be"
                    " written (a control character, or bytes that are not UTF-8)."
                )
            if character in self.without:
                raise UserError(f"{key}={shown(value)!r} must not hold any of {self.without}")
        if self.longest is not None and len(value) > self.longest:
            raise UserError(
                f"{key}={shown(value)!r} has {len(value)} characters; {self.longest} at most."
            )

    def __str__(self) -> str:
        parts = ["text"]
        if self.longest is not None:
            parts.append(f"up to {self.longest} characters")
        if self.without:
            parts.append(f"without {self.without}")
        return " ".join(parts)


def check_fields(config: Any, prefix: str = "") -> None:
    """Raise UserError for the first field of a config dataclass, nested ones included, whose value
    its declaration rules out. None is not judged: the types say where it may stand."""
    kind: Any = type(config)
    for name, rules in rules_of(kind).items():
        value, key = getattr(config, name), prefix + name
        if is_dataclass(value):
            check_fields(value, f"{key}.")
            continue
        check_value(rules, key, value)


def check_value(rules: Sequence[Rule], key: str, value: Any) -> None:
    """Raise UserError where one of a field's rules excludes the value, an item of a list, or a text
    of a mapping."""
    if isinstance(value, dict):
        for name, entry in value.items():
            check_value(rules if isinstance(entry, str) else (), f"{key}.{name}", entry)
        return
    for item in value if isinstance(value, list) else [value]:
        for rule in rules if item is not None else ():
            rule.check(key, item)


@functools.cache
def rules_of(kind: Any) -> dict[str, tuple[Rule, ...]]:
    """Each field's rules, as a config dataclass declares them; `Text` for text without one."""
    found: dict[str, tuple[Rule, ...]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        metadata = getattr(hint, "__metadata__", ())
        rules = tuple(rule for rule in metadata if not isinstance(rule, str))
        found[name] = rules or ((Text(),) if str in set(_types_in(hint)) else ())
    return found


@functools.cache
def about(kind: Any) -> dict[str, str]:
    """What each field of a config dataclass is, in words; empty where its declaration says none."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: next(
            (text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)), ""
        )
        for name, hint in hints.items()
    }


def shown(value: Any) -> str:
    """The value as a message repeats it, cut where it is long; powers of ten for huge numbers."""
    if isinstance(value, int) and abs(value) >= 10**LONGEST_SHOWN:
        return f"{'-' if value < 0 else ''}10^{int(math.log10(abs(value)))} or so"
    text = str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _is_text(character: str) -> bool:
    """Neither a control character, a separator of lines, nor half of a surrogate pair (as which
    Python keeps a byte that is not UTF-8)."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


def _types_in(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from _types_in(part)


@functools.cache
def _ends(text: str) -> tuple[float, float, bool, bool]:
    """``[0, 1)`` → 0, 1, and whether each belongs to the interval: True, False."""
    first, last = _spelled_ends(text)
    return _number(first), _number(last), text[0] == "[", text[-1] == "]"


def _spelled_ends(text: str) -> tuple[str, str]:
    first, _, last = text[1:-1].partition(", ")
    return first, last


def _number(text: str) -> float:
    """``2^64``, ``1_000``, ``0.5`` or ``inf``; whole numbers exactly."""
    base, _, exponent = text.partition("^")
    if exponent:
        power: int = int(base) ** int(exponent)
        return power
    return int(text) if re.fullmatch(r"-?[\d_]+", text) else float(text)
