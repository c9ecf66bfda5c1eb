"""How codes lie in memory: bits of a byte, round trips, sparse weights."""

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.kernels import container_bits, pack_bits, unpack_bits
from questtrain.kernels.formats import LEVELS, int8_codes, integers_of
from tests.kernels.arguments import random_quantized, random_sparse_weight, random_weight

PACKED_LEVELS = [2, 3, 4, 8, 16]


@pytest.mark.parametrize(
    ("bits", "indices", "byte"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1], 0b10001101),
        (2, [3, 0, 1, 2], 0b10010011),
        (4, [0xA, 0x5], 0x5A),
    ],
)
def test_the_first_code_lies_lowest(bits, indices, byte):
    packed = pack_bits(torch.tensor([indices], dtype=torch.uint8), bits)
    assert packed.tolist() == [[byte]]
    assert unpack_bits(packed, bits).tolist() == [indices]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_packing_is_undone_by_unpacking(bits, rows):
    indices = torch.randint(2**bits, (rows, 96), dtype=torch.uint8)
    packed = pack_bits(indices, bits)
    assert packed.shape == (rows, 96 * bits // 8)
    assert torch.equal(unpack_bits(packed, bits), indices)


@pytest.mark.parametrize(
    ("levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 4), (7, 4), (8, 4), (16, 4)]
)
def test_the_fewest_bits_that_hold_the_levels(levels, bits):
    assert container_bits(levels) == bits


@pytest.mark.parametrize("levels", [0, 1, 17, 32, 256])
def test_other_numbers_of_levels_are_not_packed(levels):
    with pytest.raises(RuntimeError, match=f"hold 2 to 16 levels, not {levels}"):
        container_bits(levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_int8_codes_stand_for_the_integers(levels):
    """-(n-1) … n-1 in steps of two; of 256 levels the codes are all of int8's numbers."""
    codes = int8_codes(torch.arange(levels, dtype=torch.uint8), levels)
    assert codes.dtype == torch.int8
    assert integers_of(codes, levels).tolist() == list(range(1 - levels, levels, 2))
    assert codes.tolist() == list(
        range(-128, 128) if levels == 256 else range(1 - levels, levels, 2)
    )


@pytest.mark.parametrize("levels", PACKED_LEVELS)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_unpack_gives_the_integers(levels, rows):
    """v = 2q - (n-1): odd for even n, -2, 0, 2 for three levels; all of them occur."""
    integers = random_quantized(rows, 416, levels).codes
    packed = random_quantized(rows, 416, levels, packed=True).codes
    assert torch.equal(kernels.unpack(packed, levels), integers)
    if rows == 17:
        assert integers.unique().tolist() == list(range(1 - levels, levels, 2))


@pytest.mark.parametrize("levels", PACKED_LEVELS)
def test_sums_are_those_of_the_integers(levels):
    weight = random_weight(17, 416, levels)
    assert torch.equal(weight.sums.long(), kernels.unpack(weight.codes, levels).long().sum(1))


def test_a_sparse_weight_keeps_two_of_four_pairs():
    """2.5 bits a value: half of the codes, and half a bit for their places."""
    weight = random_sparse_weight(48, 512)
    pairs = weight.integers.reshape(48, -1, 4, 2)
    assert ((pairs != 0).all(-1).sum(-1) == 2).all()
    assert ((pairs != 0).any(-1) == (pairs != 0).all(-1)).all()
    assert weight.codes.numel() + weight.metadata.numel() == 48 * 512 * 2.5 / 8
