"""Values to try a setting with: what its declaration allows, its edges, and what nobody foresaw."""

from __future__ import annotations

import math
import typing
from typing import Any

from hypothesis import strategies as st

from questtrain.config.loading import group_kind
from questtrain.config.ranges import Choices, Interval, rules_of

STRANGE: tuple[Any, ...] = (
    None, True, False, [], [1], ["a", None], [[]], {}, {"a": 1}, "", " ", ".", "..", "../x", "/x",
    "a/b", "a/../../b", "-x", "~", "null", "nan", "ü – 漢字", "a\nb", "a\tb", "a\0b", "\udcff",
    "\u2028", "a" * 300, "é" * 130, "${oc.env:HOME}", "${", "???", "%s", "{0}", "[old]", "*",
)  # fmt: skip
NUMBERS: tuple[float, ...] = (
    0, -0.0, 1, -1, 2, 3, 7, 16, 17, 100, 1e-320, 1e-30, 1e-8, 0.5, 1.5, -0.5, 1e6, 1e20, 1e99,
    1e308, 2**31 - 1, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**400, -(10**400),
    math.nan, math.inf, -math.inf,
)  # fmt: skip


def values_of(kind: Any, key: str) -> st.SearchStrategy[Any]:
    """Of the setting with that dotted name: mostly of its type, around its edges."""
    *groups, name = key.split(".")
    for group in groups:
        kind = group_kind(typing.get_type_hints(kind)[group])
    rules = rules_of(kind)[name]
    known = [value for rule in rules for value in _edges(rule)]
    strategies = [st.sampled_from(STRANGE), st.sampled_from(NUMBERS), st.text(max_size=8)]
    hint = str(typing.get_type_hints(kind)[name])
    if "int" in hint:
        strategies.append(st.integers(-5, 300))
    if "float" in hint:
        strategies.append(st.floats())
    if known:
        strategies += [st.sampled_from(known)] * 2
    drawn = st.one_of(strategies)
    return drawn | st.lists(drawn, max_size=3) if "list" in hint else drawn


def _edges(rule: Any) -> list[Any]:
    """Each choice and near misses of it; an interval's ends and what lies beside them."""
    if isinstance(rule, Choices):
        return [*rule.names, *(name.upper() for name in rule.names), rule.names[0][:-1]]
    if not isinstance(rule, Interval):
        return []
    ends = [end for end in rule.ends if math.isfinite(end)]
    beside = [value for end in ends for value in (end - 1, end + 1)]
    floats = [math.nextafter(end, way) for end in ends for way in (-math.inf, math.inf)]
    return [*ends, *beside, *floats]
