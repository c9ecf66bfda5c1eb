"""2:4 sparsity of pairs: which values become zero, and what trust makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from questtrain.config import QuantConfig
from questtrain.errors import UserError
from questtrain.quant import QuantLinear
from questtrain.quant.sparsity import PairSparsity
from tests.quant.operands import ROTATIONS, SPARSE, WIDTH, Format, gaussian, make, mask_of
from tests.quant.quest_reference import larger_pairs

HALF_STEP = [sparse for sparse in SPARSE if sparse.recipe.label != "fp4"]


def _kept(*values: float) -> list[int]:
    return PairSparsity().kept(torch.tensor([values])).int()[0].tolist()


def test_the_two_pairs_of_largest_norm_stay() -> None:
    """Pairs count as a whole: a pair of two threes beats one of four and zero."""
    assert _kept(1, 1, 5, 0, 3, 3, 4, 0) == [0, 0, 1, 1, 1, 1, 0, 0]
    assert _kept(-9, 0, 0.1, 0, 0, -8, 0.1, 7) == [1, 1, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ((0,) * 8, (1, 1, 1, 1, 0, 0, 0, 0)),
        ((2,) * 8, (1, 1, 1, 1, 0, 0, 0, 0)),
        ((1, 0, 2, 0, 1, 0, 1, 0), (1, 1, 1, 1, 0, 0, 0, 0)),
        ((0, 1, 0, 1, 0, 2, 0, 2), (0, 0, 0, 0, 1, 1, 1, 1)),
        ((3, 4, 0, 5, 5, 0, -4, -3), (1, 1, 1, 1, 0, 0, 0, 0)),
    ],
)
def test_of_equal_pairs_the_earlier_stays(values: tuple[int, ...], kept: tuple[int, ...]) -> None:
    """Always exactly two of four, whatever is equal."""
    assert tuple(_kept(*values)) == kept


@pytest.mark.parametrize("shape", [(8,), (5, 16), (0, 8), (3, 0, 80), (2, 3, 256)])
def test_each_group_of_eight_on_its_own(shape: tuple[int, ...]) -> None:
    """As sorting chooses, group by group, for any leading dimensions."""
    x = gaussian(*shape, dtype=torch.float64)
    kept = PairSparsity().kept(x)
    assert (kept.shape, kept.dtype) == (x.shape, torch.bool)
    flat = x.reshape(-1, shape[-1]).numpy()
    expected, _ = larger_pairs(flat, np.zeros_like(flat), np.zeros((len(flat), 1)))
    assert (kept.reshape(flat.shape).numpy() == expected).all()


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("sparse", SPARSE, ids=str)
def test_pairs_are_chosen_on_the_rotated_values(sparse: Format, rotation: str) -> None:
    """Trap 10: sparsity sees what is rounded, the rotated row; the scale is the dense row's, so
    that what is kept is quantized as if nothing were pruned."""
    quantizer = sparse.quantizer(rotation)
    dense = make(sparse.recipe.label, rotation, grid=sparse.grid)
    x = gaussian(20, WIDTH, dtype=torch.float64)
    x_h = quantizer.rotation(x)
    stored, stored_dense = quantizer.quantize(x), dense.quantize(x)
    assert stored.kept is not None
    assert torch.equal(stored.kept, PairSparsity().kept(x_h))
    assert torch.equal(stored.scale, stored_dense.scale)
    values, dense_values = quantizer.dequantize(stored), dense.dequantize(stored_dense)
    assert torch.equal(values, torch.where(stored.kept, dense_values, 0.0))
    if rotation != "none":
        assert not torch.equal(stored.kept, PairSparsity().kept(x))


@pytest.mark.parametrize("sparse", SPARSE, ids=str)
def test_pruned_values_of_large_error_are_masked(sparse: Format) -> None:
    """Trap 10: a pruned value's error is its magnitude; above T·rms its gradient is masked, below
    it passes although the value is zero."""
    quantizer, recipe = sparse.quantizer(), sparse.recipe
    trust = 0.3186 if recipe.label == "fp4" else recipe.half_step
    x = gaussian(200, WIDTH, dtype=torch.float64)
    kept = quantizer.quantize(x).kept
    assert kept is not None
    x_h = quantizer.rotation(x)
    small = x_h.abs() <= trust * x_h.square().mean(-1, keepdim=True).sqrt()
    mask = mask_of(quantizer, x).bool()
    assert torch.equal(mask[~kept], small[~kept])
    for passes in (True, False):
        assert (mask[~kept] == passes).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sparse", HALF_STEP, ids=str)
def test_an_error_of_exactly_half_a_step_is_trusted(sparse: Format, dtype: torch.dtype) -> None:
    """A zero lies in the middle between two levels of a centred grid: an error of T, at most T,
    whatever the rounding of s/(n-1). Exact zeros occur: in zeroed rows and columns."""
    quantizer = sparse.quantizer("none", 16)
    x = gaussian(64, 16, dtype=dtype)
    x[:, :8] = 0.0
    assert quantizer.mask(x)[:, :8].all()


@pytest.mark.parametrize("width", [4, 12, 20, 77])
def test_widths_that_are_no_multiple_of_eight_are_refused(width: int) -> None:
    """The layer is refused when it is made, with the nearest width that would do."""
    unrotated = QuantConfig(rotation="none")
    close = {4: 8, 12: 16, 20: 16, 77: 80}[width]
    with pytest.raises(UserError, match=f"width of {width} .*multiple of 8.* nearest is {close}"):
        QuantLinear(width, 4, bits="w4s24a16", method=unrotated)
