"""Learned steps (LSQ, LSQ+) and clipping values (PACT): where they start, and what they learn.

`test_layer_against_reference` has the gradients of whole layers; here are the definitions of the
papers in autograd's own words, and the edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from questtrain.quant import learned_scalars
from questtrain.quant.quantizer import Quantizer
from tests.quant.combinations import COMBINATIONS, LEARNED, Combination
from tests.quant.operands import gaussian
from tests.quant.quest_reference import Recipe

BOTH_QUANTIZED = [c for c in COMBINATIONS if c.method in LEARNED and "16" not in c.bits]


def activation_quantizer(
    method: str, label: str = "4", grid: str = "centred", dtype: torch.dtype = torch.float64
) -> Quantizer:
    """A quantizer that has not met an operand yet."""
    layer = Combination(method, f"w{label}a{label}", grid).layer(64, 8, dtype)
    assert isinstance(layer.activation_quantizer, Quantizer)
    return layer.activation_quantizer


def gradients(output: Tensor, gradient: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, gradient)


def lsq_of_the_paper(x: Tensor, step: Tensor, levels: int) -> Tensor:
    """LSQ's appendix A on the centred grid: clamp x/step, round it straight through to the nearest
    level, times the step, whose gradient is scaled by 1/√(numel·q_max)."""
    edge = (levels - 1) / 2
    factor = 1 / math.sqrt(x.numel() * max(1, math.floor(edge)))
    step = (step - step * factor).detach() + step * factor
    clamped = (x / step).clamp(-edge, edge)
    level = (clamped.detach() + edge).round() - edge
    return ((level - clamped).detach() + clamped) * step


@pytest.mark.parametrize(("label", "levels"), [("1", 2), ("1.58", 3), ("2", 4), ("4", 16)])
def test_lsq_is_the_papers_own_code(label: str, levels: int) -> None:
    """Values and both gradients equal those that autograd finds for LSQ's pseudo-code; at 1 bit
    (trap 8) too, where q_max is 0 and must not divide."""
    quantizer = activation_quantizer("lsq", label)
    x = gaussian(40, 64, dtype=torch.float64).requires_grad_()
    g = gaussian(40, 64, dtype=torch.float64, seed=1)
    values = quantizer(x)
    step = quantizer.scale.value
    ours = gradients(values, g, x, step)
    paper = lsq_of_the_paper(x, step, levels)
    torch.testing.assert_close(values, paper, rtol=1e-12, atol=1e-12)
    for got, expected in zip(ours, gradients(paper, g, x, step), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
        assert got.isfinite().all()
        assert got.abs().max() > 0


def test_pact_is_the_gradient_of_clipping() -> None:
    """Trap 9: PACT takes the rounding for the identity, so its gradients are those of clamping to
    [-s, s]: to x inside (not zero everywhere), to s the sign of what lies outside, unscaled."""
    quantizer = activation_quantizer("pact")
    x = gaussian(40, 64, dtype=torch.float64).requires_grad_()
    g = gaussian(40, 64, dtype=torch.float64, seed=1)
    values = quantizer(x)
    clip = quantizer.scale.value
    grad_x, grad_clip = gradients(values, g, x, clip)
    expected_x, expected_clip = gradients(torch.minimum(torch.maximum(x, -clip), clip), g, x, clip)
    assert torch.equal(grad_x, expected_x)
    assert (grad_x != 0).double().mean() > 0.9
    torch.testing.assert_close(grad_clip, expected_clip, rtol=1e-13, atol=0)
    assert grad_clip.abs() > 0.1


@pytest.mark.parametrize("grid", ["centred", "int"])
def test_lsq_plus_moves_the_middle_of_the_grid(grid: str) -> None:
    """LSQ+: Q(x) is LSQ of x - β, plus β; β starts at the mean, the step at the spread around it,
    and β's gradient is that of clamping, scaled as the step's."""
    quantizer = activation_quantizer("lsq-plus", "3", grid)
    x = (5 + 0.5 * gaussian(40, 64, dtype=torch.float64)).requires_grad_()
    g = gaussian(40, 64, dtype=torch.float64, seed=1)
    values = quantizer(x)
    assert quantizer.offset is not None
    offset, step = quantizer.offset.value, quantizer.scale.value
    assert offset.item() == pytest.approx(x.mean().item(), rel=1e-12)
    centred = activation_quantizer("lsq", "3", grid)
    expected = centred((x - offset).detach()) + offset
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(step, centred.scale.value, rtol=1e-12, atol=0)
    s = step.item() * (3.5 if grid == "centred" else 3)
    clamped = (x - offset).clamp(-s, s) + offset
    grad_x, grad_offset = gradients(values, g, x, offset)
    clamped_x, clamped_offset = gradients(clamped, g, x, offset)
    assert torch.equal(grad_x, clamped_x)
    scaled = clamped_offset / math.sqrt(x.numel() * 3)
    torch.testing.assert_close(grad_offset, scaled, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("combination", BOTH_QUANTIZED, ids=str)
def test_learned_gradients_are_finite_and_not_zero(
    combination: Combination, dtype: torch.dtype
) -> None:
    """Trap 8 for every format: each learned number starts positive and gets a gradient, from
    operands with a value outside every grid."""
    layer = combination.layer(64, 8, dtype)
    x = gaussian(40, 64, dtype=dtype) + 0.1
    x[3, 5] = layer.weight.data[2, 5] = 30.0
    layer(x).square().sum().backward()
    scalars = learned_scalars(layer)
    assert len(scalars) == (3 if combination.method == "lsq-plus" else 2)
    for scalar in scalars:
        assert scalar.value.shape == (1,)
        assert scalar.value > 0
        assert scalar.value.grad is not None
        assert scalar.value.grad.isfinite().all()
        assert scalar.value.grad != 0


@pytest.mark.parametrize("method", LEARNED)
def test_weights_have_no_offset(method: str) -> None:
    """LSQ+ gives one to activations alone."""
    layer = Combination(method, "w4a4").layer(64, 8)
    assert layer.weight_quantizer.offset is None
    assert (layer.activation_quantizer.offset is not None) == (method == "lsq-plus")


@pytest.mark.parametrize("method", LEARNED)
def test_the_first_operand_decides_where_it_starts(method: str) -> None:
    """Not a later one, in training or not: the values of the first are quantized as before."""
    quantizer = activation_quantizer(method)
    x = gaussian(40, 64, dtype=torch.float64)
    first = quantizer(x)
    start = [scalar.value.item() for scalar in learned_scalars(quantizer)]
    quantizer(100 * x + 7)
    quantizer.eval()(x / 100)
    assert [scalar.value.item() for scalar in learned_scalars(quantizer)] == start
    assert torch.equal(quantizer(x), first)


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_starts_without_a_gradient_too(method: str, context: Callable[[], torch.no_grad]) -> None:
    """Where no gradient is recorded it starts at the same numbers and can train afterwards."""
    quantizer, reference = activation_quantizer(method), activation_quantizer(method)
    x = gaussian(40, 64, dtype=torch.float64)
    reference(x)
    with context():
        quantizer(x)
    for ours, expected in zip(learned_scalars(quantizer), learned_scalars(reference), strict=True):
        assert torch.equal(ours.value, expected.value)
    quantizer(x).square().sum().backward()
    assert all(scalar.value.grad is not None for scalar in learned_scalars(quantizer))


@pytest.mark.parametrize("method", LEARNED)
def test_an_empty_operand_starts_nothing(method: str) -> None:
    """It has no statistics: the operand after it decides, as if it had come first."""
    quantizer, reference = activation_quantizer(method), activation_quantizer(method)
    assert quantizer(torch.zeros(0, 64, dtype=torch.float64)).shape == (0, 64)
    x = gaussian(40, 64, dtype=torch.float64)
    assert torch.equal(quantizer(x), reference(x))


@pytest.mark.parametrize(("method", "constant"), [*((m, 0.0) for m in LEARNED), ("lsq-plus", 3.0)])
def test_a_first_operand_without_spread_does_not_stop_learning(
    method: str, constant: float
) -> None:
    """All zeros (or, around an offset, one constant) give finite values and a scale that an operand
    after them moves: it gets a gradient, so that it does not stay zero."""
    quantizer = activation_quantizer(method)
    first = torch.full((4, 64), constant, dtype=torch.float64)
    assert quantizer(first).isfinite().all()
    values = quantizer(100 * gaussian(40, 64, dtype=torch.float64))
    g = gaussian(40, 64, dtype=torch.float64, seed=1)
    assert all(scalar.value.isfinite().all() for scalar in learned_scalars(quantizer))
    (gradient,) = gradients(values, g, quantizer.scale.value)
    assert gradient.isfinite().all()
    assert gradient != 0


@pytest.mark.parametrize("method", LEARNED)
def test_the_sign_of_a_scale_means_nothing(method: str) -> None:
    """A step may cross zero: the same values, and the gradient of the magnitude."""
    quantizer = activation_quantizer(method)
    x = gaussian(40, 64, dtype=torch.float64)
    g = gaussian(40, 64, dtype=torch.float64, seed=1)
    positive = quantizer(x)
    (gradient,) = gradients(positive, g, quantizer.scale.value)
    with torch.no_grad():
        quantizer.scale.value.neg_()
    negative = quantizer(x)
    assert torch.equal(negative, positive)
    (mirrored,) = gradients(negative, g, quantizer.scale.value)
    assert torch.equal(mirrored, -gradient)


@pytest.mark.parametrize("label", ["1", "1.58", "4", "fp4"])
@pytest.mark.parametrize("method", LEARNED)
def test_the_mask_is_what_lies_outside(method: str, label: str) -> None:
    """M = 0 where the gradient to x stops: beyond ±s, of a Gaussian 2·(1 - Φ(α)) at the start."""
    quantizer = activation_quantizer(method, label)
    x = gaussian(40, 64, dtype=torch.float64).requires_grad_()
    (passed,) = gradients(quantizer(x), torch.ones_like(x), x)
    assert torch.equal(quantizer.mask(x.detach()), passed.bool())
    outside = 2 * norm.sf(Recipe(label).alpha)
    assert quantizer.expected_masked_fraction(1 << 16) == pytest.approx(outside, abs=2 / 2**16)


@pytest.mark.parametrize("label", ["1", "4", "fp4"])
@pytest.mark.parametrize("method", LEARNED)
def test_infinities_are_clipped_and_nan_stays_visible(method: str, label: str) -> None:
    """±∞ become the outermost values and pass no gradient to x; a NaN stays one, alone."""
    quantizer = activation_quantizer(method, label)
    x = gaussian(40, 64, dtype=torch.float64)
    clean = quantizer(x)
    broken = x.clone()
    broken[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    broken.requires_grad_()
    values = quantizer(broken)
    assert values[0, 0] == quantizer(torch.full_like(x, 1e30))[0, 0] > 0
    assert values[0, 1] == quantizer(torch.full_like(x, -1e30))[0, 0] < 0
    assert values.isnan().nonzero().tolist() == [[0, 2]]
    assert torch.equal(values[1:], clean[1:])
    values[:, :2].sum().backward()
    assert broken.grad is not None
    assert broken.grad[0, :2].tolist() == [0.0, 0.0]
    assert broken.grad.isfinite().all()
    step_gradient = quantizer.scale.value.grad
    assert step_gradient is not None
    assert step_gradient.isfinite().all()


@pytest.mark.parametrize("method", LEARNED)
def test_learned_numbers_stay_in_fp32(method: str) -> None:
    """In a bf16 layer, made so or converted, they and their gradients are fp32: bf16 could not
    follow their small updates. Under autocast as well."""
    made = Combination(method, "w4a4").layer(64, 8, torch.bfloat16)
    for layer, x in ((made, gaussian(40, 64).bfloat16()), (_autocast(method), gaussian(40, 64))):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        for scalar in learned_scalars(layer):
            assert scalar.value.grad is not None
            assert (scalar.value.dtype, scalar.value.grad.dtype) == (torch.float32, torch.float32)


def _autocast(method: str) -> nn.Module:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Combination(method, "w4a4").layer(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y: Tensor = self.layer(x)
            return y

    return Autocast()
