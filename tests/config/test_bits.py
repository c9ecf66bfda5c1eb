"""The grammar of ``bits=`` (design.md): what it accepts, and what it suggests otherwise."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from questtrain.config import parse_bits
from questtrain.errors import UserError

INTEGERS = ("1", "1.58", "2", "3", "4", "5", "6", "7", "8")
FORMATS = (*INTEGERS, "fp4", "16")
NOMINAL_BITS = {label: 4.0 if label == "fp4" else float(label) for label in FORMATS}


@pytest.mark.parametrize(("weight", "activation"), [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_parses(weight: str, activation: str) -> None:
    """Each of the 121 pairs of W and A gives these two formats and has one canonical name."""
    name = f"w{weight}a{activation}"
    bits = parse_bits(name)
    assert (bits.weight.label, bits.activation.label) == (weight, activation)
    assert (bits.weight.bits, bits.activation.bits) == (
        NOMINAL_BITS[weight],
        NOMINAL_BITS[activation],
    )
    assert not bits.weight.sparse
    assert bits.quantized == (name != "w16a16")
    assert str(bits) == {"w16a16": "bf16", "wfp4afp4": "fp4"}.get(name, name)
    assert parse_bits(str(bits)) == bits
    assert parse_bits(name.upper()) == bits


@pytest.mark.parametrize("activation", FORMATS)
@pytest.mark.parametrize("weight", [label for label in FORMATS if label != "16"])
def test_sparse_weights_parse(weight: str, activation: str) -> None:
    """s24 after W is 2:4 sparsity of the weight alone; its nominal bits are those of a value that
    is kept, and the name is its own canonical one."""
    name = f"w{weight}s24a{activation}"
    bits = parse_bits(name)
    assert (bits.weight.label, bits.weight.sparse) == (weight, True)
    assert (bits.activation.label, bits.activation.sparse) == (activation, False)
    assert bits.weight.bits == NOMINAL_BITS[weight]
    assert bits.quantized
    assert str(bits) == name
    assert parse_bits(name.upper()) == bits
    assert bits != parse_bits(f"w{weight}a{activation}")


@pytest.mark.parametrize(
    ("alias", "spelled", "canonical"),
    [
        ("bf16", "w16a16", "bf16"),
        ("BF16", "w16a16", "bf16"),
        ("fp4", "wfp4afp4", "fp4"),
        ("FP4", "wfp4afp4", "fp4"),
        ("WFP4aFP4", "wfp4afp4", "fp4"),
    ],
)
def test_aliases(alias: str, spelled: str, canonical: str) -> None:
    """An alias and what it stands for are one value with one canonical name."""
    assert parse_bits(alias) == parse_bits(spelled)
    assert str(parse_bits(alias)) == canonical


def test_kinds() -> None:
    """An integer grid, FP4 or 16-bit floats, of which only the last is not quantized."""
    kinds = {label: parse_bits(f"w{label}a16").weight.kind for label in FORMATS}
    assert kinds == dict.fromkeys(INTEGERS, "int") | {"fp4": "fp4", "16": "bf16"}
    assert not parse_bits("w16a4").weight.quantized
    assert parse_bits("wfp4a16").weight.quantized


@pytest.mark.parametrize("label", INTEGERS)
def test_levels_are_an_integer_that_the_bits_name(label: str) -> None:
    """b bits mean 2^b levels, and 1.58 bits mean three (trap 5), not four."""
    levels = parse_bits(f"w{label}a{label}").weight.levels
    assert levels == (3 if label == "1.58" else 2 ** int(label))
    assert levels == round(2 ** float(label))


@pytest.mark.parametrize(
    ("label", "levels"),
    [("1.58", 3), ("2", 3), ("3", 7), ("4", 15), ("5", 31), ("6", 63), ("7", 127), ("8", 255)],
)
def test_the_grid_with_zero_has_one_level_less(label: str, levels: int) -> None:
    """An odd number of levels, 2^b - 1; three stay three. The centred grid has all."""
    number_format = parse_bits(f"w{label}a16").weight
    assert number_format.grid_levels("int") == levels
    assert number_format.grid_levels("centred") == number_format.levels
    assert parse_bits(f"w{label}s24a16").weight.grid_levels("int") == levels


@pytest.mark.parametrize("label", FORMATS)
def test_a_packed_value_fits_its_storage(label: str) -> None:
    """Storage is the smallest of 1, 2, 4, 8, 16 bits that holds every code."""
    number_format = parse_bits(f"w{label}a16").weight
    needed = {"16": 16, "fp4": 4}.get(label) or math.ceil(math.log2(number_format.levels))
    assert number_format.storage_bits == min(n for n in (1, 2, 4, 8, 16) if n >= needed)


@pytest.mark.parametrize(
    ("sparse", "bits"),
    [("1", 1.0), ("2", 1.5), ("1.58", 1.5), ("3", 2.5), ("4", 2.5), ("fp4", 2.5), ("8", 4.5)],
)
def test_sparse_storage_is_half_and_half_a_bit(sparse: str, bits: float) -> None:
    """Of each 8 values 4 are stored, and two of four pairs named in 2 bits each: INT4 takes 2.5
    bits a value (quest.md)."""
    weight = parse_bits(f"w{sparse}s24a16").weight
    assert weight.storage_bits == bits
    stored = 4 * parse_bits(f"w{sparse}a16").weight.storage_bits + 2 * 2
    assert weight.storage_bits == stored / 8


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
        ("w4fp4", "fp4"),
        ("wfp4", "fp4"),
        ("nvfp4", "fp4"),
        ("wfp4a9", "wfp4a8"),
        ("w9afp4", "w8afp4"),
        ("w4s24", "w4s24a4"),
        ("w4s2a4", "w4s24a4"),
        ("w4.4s24a4", "w4s24a4"),
        ("w9s24a9", "w8s24a8"),
        ("w16s24a8", "w4s24a8"),
        ("w12s24afp4", "w8s24afp4"),
    ],
)
def test_wrong_bits_name_the_nearest(wrong: str, nearest: str) -> None:
    """The error repeats the value and suggests the closest format."""
    with pytest.raises(UserError, match=re.escape(f"Did you mean '{nearest}'?")) as caught:
        parse_bits(wrong)
    assert repr(wrong) in str(caught.value)


@given(
    st.from_regex(r"w([0-9.]{1,4}|fp4)(s24)?a([0-9.]{1,4}|fp4)", fullmatch=True)
    | st.text(max_size=8)
    | st.text("wafps0124568.", max_size=8)
)
@example("w16s24a9")
@example("w15s24a4")
def test_every_suggestion_is_valid(text: str) -> None:
    """Whatever is typed either parses or is answered with something that parses."""
    try:
        parse_bits(text)
    except UserError as error:
        suggestion = re.search(r"Did you mean '(.*)'\?$", str(error))
        assert suggestion is not None
        parse_bits(suggestion[1])
