"""Rules of single values: intervals, choices, text, names; and the walk that applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questtrain.config.names import MAX_NAME_BYTES, PathName
from questtrain.config.ranges import Choices, Form, Interval, Text, check_fields, shown
from questtrain.errors import UserError


def takes(rule: Any, value: Any) -> bool:
    try:
        rule.check("key", value)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "inside", "outside", "words"),
    [
        ("[0, 1)", (0, 0.5, math.nextafter(1, 0)), (-1e-300, 1, math.nan), "at least 0 and below"),
        ("(0, 1]", (1e-300, 1), (0, -0.0, 1.0000001, math.nan), "positive and at most 1"),
        ("(0, inf)", (1e-300, 1e308), (0, math.inf, -math.inf, math.nan), "positive and finite"),
        ("(0, inf]", (1, math.inf), (0, -math.inf, math.nan), "must be positive."),
        ("[0, 2^64)", (0, 2**64 - 1), (-1, 2**64, 10**400), "below 2^64"),
        ("[1, 2^53]", (1, 2**53), (0, 2**53 + 1), "at most 2^53"),
        ("[1, 10_000]", (1, 10_000), (0, 10_001), "at most 10_000"),
        ("(-2, 3]", (-1.9, 3), (-2, 3.1), "more than -2 and at most 3"),
    ],
)
def test_intervals(text: str, inside: tuple, outside: tuple, words: str) -> None:
    """Both ends, exactly; NaN is in none."""
    for value in inside:
        assert takes(Interval(text), value), value
    for value in outside:
        with pytest.raises(UserError) as caught:
            Interval(text).check("optim.x", value)
        assert f"optim.x={shown(value)} must be" in str(caught.value)
        assert words in str(caught.value)


def test_a_number_besides_the_interval() -> None:
    rule = Interval("[1e-6, inf]", also=0)
    assert all(takes(rule, value) for value in (0, 0.0, -0.0, 1e-6, math.inf))
    assert not any(takes(rule, value) for value in (1e-7, -1, math.nan))
    assert str(rule) == "[1e-6, inf] or 0"


@given(st.floats() | st.integers())
def test_an_interval_is_what_its_ends_say(value: float) -> None:
    assert takes(Interval("[-3, 2^40)"), value) == (-3 <= value < 2**40)


@pytest.mark.parametrize(
    "value", ["a", "a b", "ü – 漢字", "it's", "back\\slash\\", "f(x)=[1,{2}]", "${x}", "👩\u200d🔬"]
)
def test_text_and_names_are_free(value: str) -> None:
    assert takes(Text(), value)
    assert takes(PathName(), value)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "\x1b[31m", "\udcff", "\u2028", "\x7f", "\x85"])
def test_what_cannot_be_written_is_no_text(value: str) -> None:
    """Control characters, line separators, bytes that are not UTF-8; a prompt may have lines."""
    assert not takes(Text(), value)
    assert not takes(PathName(nested=True), value)
    assert takes(Text(lines=True), value) == (value == "a\nb")


@pytest.mark.parametrize(
    "value",
    ["", " ", ".", "..", "/", "/x", "../x", "a/../x", "a/..", "a//b", "a/", "a/./b", "-x", "a/-x",
     "x" * (MAX_NAME_BYTES + 1), "é" * (MAX_NAME_BYTES // 2 + 1)],
)  # fmt: skip
def test_names_stay_in_their_folder(value: str) -> None:
    assert not takes(PathName(nested=True), value)
    assert not takes(PathName(), value)


def test_only_nested_names_have_slashes() -> None:
    assert takes(PathName(nested=True), "a/b/c")
    assert not takes(PathName(), "a/b")
    assert takes(PathName(nested=True), "..a/...")


def test_limits_of_text() -> None:
    rule = Text(longest=3, without="/%")
    assert takes(rule, "abc")
    assert not any(takes(rule, value) for value in ("abcd", "a/", "%", ""))
    assert takes(Text(empty=True), "")


def test_choices_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key 'adamv': choose from adamw\. Did you mean"):
        Choices(("adamw",)).check("key", "adamv")
    with pytest.raises(UserError, match="unknown key 'gpu': choose auto or cpu"):
        Form("auto|cpu", "auto or cpu").check("key", "gpu")


@dataclass
class Inner:
    size: Annotated[int | None, Interval("[1, 9]")] = 1
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    numbers: Annotated[list[int], Interval("[1, 9]")] = field(default_factory=list)
    title: str | None = None


def test_the_walk_reaches_groups_lists_and_what_has_no_rule() -> None:
    """None is left to the types; text without a rule is `Text`."""
    check_fields(Outer(Inner(None, ["a"]), [1, 9]))
    for broken, named in (
        (Outer(Inner(0)), "inner.size=0"),
        (Outer(Inner(names=["a", ""])), "inner.names is empty"),
        (Outer(numbers=[1, 10]), "numbers=10"),
        (Outer(title="a\0"), "title='a\\x00'"),
    ):
        with pytest.raises(UserError) as caught:
            check_fields(broken)
        assert str(caught.value).startswith(named)


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 10**6)) <= 60
    assert shown(10**400) == "10^400 or so"
    assert shown(-(10**5000)) == "-10^5000 or so"
    assert shown(1.5) == "1.5"
