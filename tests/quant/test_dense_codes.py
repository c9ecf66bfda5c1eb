"""Codes in their bits: exact round trips, the layout byte by byte, and no byte too many."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from questtrain.kernels import pack_bits
from questtrain.quant.dense_codes import (
    PAIR_CHOICES,
    choices_of,
    kept_by,
    pack_codes,
    packed_bytes,
    unpack_codes,
)
from questtrain.quant.sparsity import PairSparsity

LEVELS = (2, 3, 4, 6, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256)


@given(st.sampled_from(LEVELS), st.integers(0, 70), st.integers(0, 2**32))
def test_codes_come_back(levels, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, levels, (count,), generator=generator, dtype=torch.uint8)
    packed = pack_codes(codes, levels)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(count, levels),)
    assert torch.equal(unpack_codes(packed, levels, count), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_pair_of_neighbours_comes_back(levels):
    """All values at all places of a byte, beside all others."""
    values = torch.arange(levels, dtype=torch.uint8)
    codes = torch.cartesian_prod(values, values).flatten()
    for start in range(8):
        part = codes[start:]
        assert torch.equal(unpack_codes(pack_codes(part, levels), levels, len(part)), part)


@pytest.mark.parametrize(("levels", "most"), [(2, 1), (3, 1.6), (6, 8 / 3), (8, 3), (32, 5)])
def test_bits_a_code(levels, most):
    """Digits lose at most 3.2% on their information, bits of a power of two nothing."""
    count = 240_000
    bits = packed_bytes(count, levels) * 8 / count
    assert bits == pytest.approx(most)
    assert bits <= math.log2(levels) * 1.032


def test_the_first_code_is_lowest():
    codes = torch.tensor([1, 2, 0, 1, 2, 2], dtype=torch.uint8)
    assert pack_codes(codes, 3).tolist() == [1 + 2 * 3 + 0 * 9 + 1 * 27 + 2 * 81, 2]
    assert pack_codes(codes, 6).tolist() == [1 + 2 * 6, 1 + 2 * 6 + 2 * 36]
    codes = torch.tensor([1, 7, 5], dtype=torch.uint8)  # 101 111 001, lowest last
    assert pack_codes(codes, 8).tolist() == [0b01111001, 0b1]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_whole_bytes_are_those_of_the_kernels(bits):
    codes = torch.randint(0, 2**bits, (3, 32), dtype=torch.uint8)
    assert torch.equal(pack_codes(codes, 2**bits), pack_bits(codes, bits).flatten())


def test_the_pairs_that_sparsity_keeps_come_back():
    kept = PairSparsity().kept(torch.randn(16, 64, generator=torch.Generator().manual_seed(0)))
    choices = choices_of(kept)
    assert set(choices.tolist()) == set(range(len(PAIR_CHOICES)))
    assert torch.equal(kept_by(choices).view(kept.shape), kept)
    assert kept_by(torch.tensor([1], dtype=torch.uint8)).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
