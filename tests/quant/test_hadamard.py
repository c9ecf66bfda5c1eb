"""The Hadamard transform: which matrix it is, and in which precision (trap 11)."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch

from questtrain.kernels import hadamard_signs, hadamard_transform
from tests.quant.quest_reference import hadamard

BLOCKS = (16, 32, 64, 128)


@pytest.mark.parametrize("block", [1, 2, 4, 8, *BLOCKS, 256])
def test_signs_are_sylvesters(block: int) -> None:
    """The signs are scipy's Hadamard matrix: ±1 and symmetric."""
    signs = hadamard_signs(block)
    assert (signs.numpy() == scipy.linalg.hadamard(block)).all()
    assert torch.equal(signs, signs.T)


@pytest.mark.parametrize("block", [0, 3, 96, -2])
def test_other_sizes_are_refused(block: int) -> None:
    """There is no Sylvester matrix of a size that is no power of two."""
    with pytest.raises(RuntimeError, match=f"power of two, not {block}"):
        hadamard_signs(block)


@pytest.mark.parametrize("block", BLOCKS)
def test_is_the_orthonormal_block_diagonal_matrix(block: int) -> None:
    """Transforming the identity gives H itself, block by block; H·Hᵀ is the identity."""
    width = 3 * block
    h = hadamard_transform(torch.eye(width, dtype=torch.float64), hadamard_signs(block))
    torch.testing.assert_close(h, torch.from_numpy(hadamard(width, block)), rtol=0, atol=1e-15)
    torch.testing.assert_close(h @ h.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(128,), (0, 128), (3, 256), (2, 0, 128), (2, 3, 5, 384)])
def test_leading_dimensions_are_rows(shape: tuple[int, ...]) -> None:
    """Any number of leading dimensions, empty ones included; the inverse is the transform."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signs = hadamard_signs(128)
    x_h = hadamard_transform(x, signs)
    assert x_h.shape == x.shape
    torch.testing.assert_close(x_h, x @ torch.from_numpy(hadamard(shape[-1])))
    torch.testing.assert_close(hadamard_transform(x_h, signs), x)


def test_a_width_that_is_no_multiple_is_refused() -> None:
    """A partial block has no transform."""
    with pytest.raises(RuntimeError, match="no multiple of 128"):
        hadamard_transform(torch.zeros(2, 192), hadamard_signs(128))


def test_bf16_input_accumulates_in_fp32() -> None:
    """Trap 11: all in bf16 H·H is 0.9998 on its diagonal and the transform is off by 10⁻³ and
    more; ours returns fp32, off by fp32's rounding only."""
    h_bf16 = torch.from_numpy(hadamard(128)).bfloat16()
    diagonal = (h_bf16.double() @ h_bf16.double()).diagonal()
    assert ((diagonal - 0.9998).abs() < 5e-5).all()

    signs = hadamard_signs(128)
    twice = hadamard_transform(hadamard_transform(torch.eye(128).bfloat16(), signs), signs)
    torch.testing.assert_close(twice, torch.eye(128), rtol=0, atol=1e-6)

    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = x.double() @ torch.from_numpy(hadamard(128))
    ours = hadamard_transform(x, signs)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 2e-6
    assert (x @ h_bf16 - exact).abs().max() > 1e-3


def test_autocast_does_not_touch_it() -> None:
    """Under bf16 autocast the forward and the gradient are the same bits as without."""

    def both(enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x_h = hadamard_transform(x, hadamard_signs(128))
        (x_h * torch.linspace(-1, 1, 256)).sum().backward()
        assert x.grad is not None
        return x_h, x.grad

    for plain, autocast in zip(both(False), both(True), strict=True):
        assert plain.dtype == autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)
