"""The grammar of ``bits=`` (design.md): what it accepts, and what it suggests otherwise."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questtrain.config import parse_bits
from questtrain.errors import UserError

FORMATS = ("1", "1.58", "2", "3", "4", "5", "6", "7", "8", "16")


@pytest.mark.parametrize(("weight", "activation"), [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_parses(weight: str, activation: str) -> None:
    """Each of the 100 pairs of W and A gives these two formats and is its own canonical name."""
    name = f"w{weight}a{activation}"
    bits = parse_bits(name)
    assert (bits.weight.label, bits.activation.label) == (weight, activation)
    assert (bits.weight.bits, bits.activation.bits) == (float(weight), float(activation))
    assert bits.quantized == (name != "w16a16")
    assert parse_bits(str(bits)) == bits
    assert parse_bits(name.upper()) == bits


@pytest.mark.parametrize("alias", ["bf16", "BF16", "w16a16"])
def test_bf16_is_sixteen_by_sixteen(alias: str) -> None:
    """The aliases of the unquantized run are one value with one canonical name."""
    assert parse_bits(alias) == parse_bits("w16a16")
    assert str(parse_bits(alias)) == "bf16"


@pytest.mark.parametrize("label", FORMATS[:-1])
def test_levels_are_an_integer_that_the_bits_name(label: str) -> None:
    """b bits mean 2^b levels, and 1.58 bits mean three (trap 5), not four."""
    levels = parse_bits(f"w{label}a{label}").weight.levels
    assert levels == (3 if label == "1.58" else 2 ** int(label))
    assert levels == round(2 ** float(label))


@pytest.mark.parametrize("label", FORMATS)
def test_a_packed_value_fits_its_storage(label: str) -> None:
    """Storage is the smallest of 1, 2, 4, 8, 16 bits that holds every code."""
    number_format = parse_bits(f"w{label}a16").weight
    needed = 16 if label == "16" else math.ceil(math.log2(number_format.levels))
    assert number_format.storage_bits == min(n for n in (1, 2, 4, 8, 16) if n >= needed)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("w9a4", "w8a4"),
        ("w4a9", "w4a8"),
        ("w4a15", "w4a16"),
        ("w1.5a1.5", "w1.58a1.58"),
        ("w1.5a8", "w1.58a8"),
        ("w0a0", "w1a1"),
        ("w9a19", "w8a16"),
        ("w15a1.5", "w16a1.58"),
        ("w.a4", "w4a4"),
        ("w4", "w4a4"),
        ("4", "w4a4"),
        ("a4w4", "w4a4"),
        ("w4a16 ", "w4a16"),
        ("w4a4\n", "w4a4"),
        ("b16", "bf16"),
        ("", "w4a4"),
        ("w-4a4", "w4a4"),
    ],
)
def test_wrong_bits_name_the_nearest(wrong: str, nearest: str) -> None:
    """The error repeats the value and suggests the closest format."""
    with pytest.raises(UserError, match=re.escape(f"Did you mean '{nearest}'?")) as caught:
        parse_bits(wrong)
    assert repr(wrong) in str(caught.value)


@given(st.from_regex(r"w[0-9.]{1,4}a[0-9.]{1,4}", fullmatch=True) | st.text(max_size=8))
def test_every_suggestion_is_valid(text: str) -> None:
    """Whatever is typed either parses or is answered with something that parses."""
    try:
        parse_bits(text)
    except UserError as error:
        suggestion = re.search(r"Did you mean '(.*)'\?$", str(error))
        assert suggestion is not None
        parse_bits(suggestion[1])
