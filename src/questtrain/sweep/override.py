"""Words of the command line that change a sweep: other values of an axis, a setting, a new axis."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from questtrain.errors import UserError
from questtrain.sweep.grid import OF_THE_SWEEP, Scalar, Sweep, agrees

Values: TypeAlias = Mapping[str, tuple[Scalar, ...]]
"""What was asked for on the command line: each key with one value or more."""

ONE_VALUE = ("[", "{", "'", '"')
"""A value that begins like this is one value: a list, a mapping, quoted text."""


def parse_overrides(words: Sequence[str], free_text: Collection[str] = ()) -> Values:
    """``["model=30M,50M", "seed=1"]`` → ``{"model": ("30M", "50M"), "seed": (1,)}``.

    Commas separate values, but not in a key of ``free_text``. UserError: no ``key=value``, a key
    given twice, an empty value, or a key that the sweep decides itself.
    """
    found: dict[str, tuple[Scalar, ...]] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or key[:1] in ("+", "~", "-"):
            raise UserError(f"{word!r} is not a setting: write key=value, such as model=30M,50M.")
        if key in OF_THE_SWEEP:
            raise UserError(f"{word!r} is not for a sweep: {OF_THE_SWEEP[key]}.")
        if key in found:
            raise UserError(f"{key} is given twice: write {key}=A,B for several values.")
        if key in free_text or text.startswith(ONE_VALUE):
            found[key] = (text,)
            continue
        texts = text.split(",")
        if "" in texts and len(texts) > 1:
            raise UserError(f"{word!r} has an empty value between its commas.")
        found[key] = tuple(_scalar(text) for text in texts)
    return found


def with_overrides(sweep: Sweep, values: Values) -> Sweep:
    """The sweep with other values: of an axis, of a setting, or several of one: a new axis.

    Included points that name another value of an overridden key are left out, and so are exclude
    rules that only the replaced values made true.
    """
    axes, settings = dict(sweep.axes), dict(sweep.settings)
    include = [dict(point) for point in sweep.include]
    for key, chosen in values.items():
        include = [p for p in include if key not in p or any(agrees(p, {key: v}) for v in chosen)]
        if key in sweep.axes:
            axes[key] = chosen
        elif len(chosen) == 1:
            settings[key] = chosen[0]
        else:
            settings.pop(key, None)
            axes[key] = chosen
            include = [point for p in include for point in _spread(p, key, chosen)]
    exclude = [rule for rule in sweep.exclude if _can_match(rule, axes, settings, values)]
    return replace(
        sweep, axes=axes, settings=settings, exclude=tuple(exclude), include=tuple(include)
    )


def _spread(
    point: dict[str, Scalar], key: str, chosen: tuple[Scalar, ...]
) -> list[dict[str, Scalar]]:
    """The included point with each value of a new axis, unless it names one itself."""
    return [point] if key in point else [{**point, key: value} for value in chosen]


def _can_match(
    rule: Mapping[str, Scalar],
    axes: Mapping[str, tuple[Scalar, ...]],
    settings: Mapping[str, Scalar],
    values: Values,
) -> bool:
    """Whether the rule's values of the overridden keys still occur."""
    return all(
        any(agrees({key: value}, {key: rule[key]}) for value in axes.get(key, (settings.get(key),)))
        for key in rule.keys() & values.keys()
    )


def _scalar(text: str) -> Scalar:
    """The value as a sweep file would hold it, so that 100 on the command line is 100 there."""
    words: dict[str, Scalar] = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
