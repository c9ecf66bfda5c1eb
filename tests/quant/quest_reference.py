"""QuEST and the methods beside it in float64 numpy, written from quest.md and the methods' papers
and not from the code under test.

Nearest values are found by trying all of them, pairs by sorting them; a rotation is a dense matrix;
trust is the error form; gradients of learned parameters are written out from their definitions.

Where a decision hangs on rounding (a value in the middle between two levels, two pairs of equal
norm, a value at the limit of trust) either outcome is right: there, and only there, the decision
of the code under test is taken over, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = {
    "1": 0.797885,
    "1.58": 1.224009,
    "2": 1.493535,
    "3": 2.051068,
    "4": 2.513931,
    "5": 2.916094,
    "6": 3.276597,
    "7": 3.601050,
    "8": 3.884939,
}
LEVELS = {label: 3 if label == "1.58" else 2 ** int(label) for label in ALPHA}
ALPHA_WITH_ZERO = {  # of 2^b - 1 levels
    "1.58": 1.224009,
    "2": 1.224009,
    "3": 1.952309,
    "4": 2.473879,
    "5": 2.898728,
    "6": 3.270115,
    "7": 3.607461,
    "8": 3.920501,
}
ALPHA_FP4 = 2.922479
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ONE_BIT_TRUST = {True: 1.30, False: 1.25}  # trap 3: with and without the Hadamard transform
FP4_TRUST_ERROR = 0.3186  # trap 4


@dataclass(frozen=True)
class Recipe:
    """How one operand is quantized; ``16`` is not at all.

    ``zero``: the grid of 2^b - 1 levels that holds zero. ``learned``: None, ``step`` or ``clip``.
    """

    label: str
    rotation: str = "none"
    zero: bool = False
    sparse: bool = False
    trust_scale: float | None = None
    trust_error: float | None = None
    learned: str | None = None
    offset: bool = False
    block: int = 128
    group_size: int | None = None
    scale_dtype: str = "float32"

    @property
    def n(self) -> int:
        """The number of levels of a uniform grid."""
        return LEVELS[self.label] - (self.zero and self.label != "1.58")

    @property
    def alpha(self) -> float:
        if self.label == "fp4":
            return ALPHA_FP4
        return (ALPHA_WITH_ZERO if self.zero else ALPHA)[self.label]

    @property
    def steps_to_edge(self) -> float:
        """s in steps; FP4's unit is a sixth of its largest value."""
        return 6.0 if self.label == "fp4" else (self.n - 1) / 2

    @property
    def levels(self) -> Array:
        """The value of each code in units of s: code·step - s, or E2M1's bit patterns."""
        if self.label == "fp4":
            return np.array([*E2M1, *(-value for value in E2M1)]) / 6
        return np.arange(self.n) * (2 / (self.n - 1)) - 1

    @property
    def half_step(self) -> float:
        """Half a step of a uniform grid, in row rms."""
        return self.alpha / (self.n - 1)

    @property
    def gradient_factor(self) -> float:
        """LSQ's q_max: the largest level in steps; 1 where there is none (trap 8)."""
        return max(1, int(self.steps_to_edge))


@dataclass(frozen=True)
class Decided:
    """What the code under test decided for each value."""

    codes: Array
    trusted: Array  # 0 and 1
    kept: Array | None = None  # 0 and 1


@dataclass
class Slope:
    """The derivative of each quantized value with respect to a learned number, times ``factor``;
    ``cancelled`` is the magnitude of what the derivative was subtracted from."""

    values: Array
    cancelled: Array
    factor: float


@dataclass
class Operand:
    """What the forward product takes, and how a gradient finds its way back."""

    product: Array  # [rows, K], in the space of the product
    mask: Array  # [rows, K] of 0 and 1, in the space of the quantization
    basis: Array  # H, or the identity
    rotated_back: bool
    magnitude: Array  # of the terms that ``product`` was summed from
    ties: int = 0
    slopes: dict[str, Slope] = field(default_factory=dict)

    def backward(self, grad: Array) -> Array:
        """``(M ⊙ grad_{x_h})·Hᵀ``."""
        return (self.mask * self._to_values(grad, self.basis)) @ self.basis.T

    def backward_magnitude(self, grad: Array) -> Array:
        """The same with every term taken as positive: what rounding errors are relative to."""
        return (self.mask * self._to_values(grad, abs(self.basis))) @ abs(self.basis).T

    def learned_gradient(self, name: str, grad: Array) -> float:
        """``Σ grad_v · ∂v/∂θ`` of the learned number θ."""
        slope = self.slopes[name]
        return float((self._to_values(grad, self.basis) * slope.values).sum() * slope.factor)

    def learned_gradient_bound(self, name: str, grad: Array, error: Array, unit: float) -> float:
        """For a gradient of magnitude ``grad`` that is off by ``error``, and values by ``unit``."""
        slope = self.slopes[name]
        off = self._to_values(error, abs(self.basis)) * abs(slope.values)
        moved = self._to_values(grad, abs(self.basis)) * unit * slope.cancelled
        return float((off + moved).sum() * slope.factor)

    def _to_values(self, grad: Array, basis: Array) -> Array:
        return grad @ basis if self.rotated_back else grad


def hadamard(width: int, block: int = 128) -> Array:
    """The dense block-diagonal, orthonormal matrix ``[width, width]``."""
    one = scipy.linalg.hadamard(block) / np.sqrt(block)
    return scipy.linalg.block_diag(*[one] * (width // block))


def basis_of(recipe: Recipe, width: int) -> Array:
    return np.eye(width) if recipe.rotation == "none" else hadamard(width, recipe.block)


def initial(x: Array, recipe: Recipe) -> dict[str, float]:
    """Where the learned numbers start: the offset at the mean, the step or the clip value at the
    MSE-optimal one of a Gaussian with the rms of the whole (centred) tensor."""
    start: dict[str, float] = {}
    if recipe.label == "16" or recipe.learned is None:
        return start
    x_h = x @ basis_of(recipe, x.shape[1])
    if recipe.offset:
        start["offset"] = float(x_h.mean())
        x_h = x_h - start["offset"]
    clip = recipe.alpha * float(np.sqrt(np.mean(x_h**2)))
    start["scale"] = clip / recipe.steps_to_edge if recipe.learned == "step" else clip
    return start


def unquantized(x: Array, recipe: Recipe) -> Operand:
    """A 16-bit operand, in the space of its partner."""
    basis = basis_of(recipe, x.shape[1])
    return Operand(x @ basis, np.ones_like(x), basis, False, abs(x) @ abs(basis))


def quantized(
    x: Array,
    recipe: Recipe,
    decided: Decided,
    tie_width: float,
    learned: dict[str, float] | None = None,
) -> Operand:
    """Quantize ``[rows, K]``; ``decided`` holds within ``tie_width`` half-widths of a tie.

    ``learned`` gives the step or clip value ``scale`` and the ``offset``, where there are any.
    """
    basis = basis_of(recipe, x.shape[1])
    offset = (learned or {}).get("offset", 0.0)
    x_h = x @ basis - offset
    if recipe.learned is None:
        s = _gaussian_scale(x_h, recipe)
    else:
        assert learned is not None
        unit = recipe.steps_to_edge if recipe.learned == "step" else 1.0
        s = np.full((len(x), 1), learned["scale"] * unit)
    codes, flipped = _nearest(x_h, s, recipe.levels, decided.codes, tie_width)
    values = s * recipe.levels[codes]
    ties = flipped
    if recipe.sparse:
        assert decided.kept is not None
        kept, swapped = larger_pairs(x_h, decided.kept, 2 * tie_width * s.max(1, keepdims=True))
        values = values * kept
        ties += swapped
    mask, undecided = _trusted(x_h, values, s, recipe, decided.trusted, 2 * tie_width * s)
    back = recipe.rotation == "hadamard-back"
    product = (values + offset) @ basis.T if back else values + offset
    magnitude = abs(values) + abs(offset)
    magnitude = magnitude @ abs(basis).T if back else magnitude
    terms = abs(x) @ abs(basis) + abs(offset) + abs(values)
    slopes = {} if recipe.learned is None else _slopes(x_h, values, s, mask, terms, recipe)
    return Operand(product, mask, basis, back, magnitude, ties + undecided, slopes)


def _gaussian_scale(x_h: Array, recipe: Recipe) -> Array:
    """α·rms of each row, or of each group of columns, for each of its columns: ``[rows, 1 or K]``;
    half a step of the grid is a number of ``scale_dtype``."""
    size = recipe.group_size or x_h.shape[1]
    groups = x_h.reshape(len(x_h), -1, size)
    s = recipe.alpha * np.sqrt(np.mean(groups**2, axis=2))
    if recipe.scale_dtype != "float32":
        s = _rounded(s / (2 * recipe.steps_to_edge), recipe.scale_dtype) * 2 * recipe.steps_to_edge
    return s if recipe.group_size is None else s.repeat(size, axis=1)


def _rounded(units: Array, dtype: str) -> Array:
    """To fp16, whose smallest number stands for what is smaller, or to the 8 bits of bf16."""
    if dtype == "float16":
        return np.maximum(units.astype(np.float16), 2.0**-24).astype(float)
    mantissa, exponent = np.frexp(units)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def _nearest(
    x_h: Array, s: Array, levels: Array, decided: Array, tie_width: float
) -> tuple[NDArray[np.int64], int]:
    """The codes of the nearest levels, and how many were decided by the code under test."""
    distance = abs(x_h[..., None] - s[..., None] * levels)
    nearest = distance.argmin(-1)
    proposed = decided.astype(int)
    at_proposed = np.take_along_axis(distance, proposed[..., None], -1)[..., 0]
    codes = np.where(at_proposed <= distance.min(-1) + 2 * tie_width * s, proposed, nearest)
    return codes, int((levels[codes] != levels[nearest]).sum())


def larger_pairs(x_h: Array, decided: Array, tolerance: Array) -> tuple[Array, int]:
    """2:4 sparsity: of each four consecutive pairs the two of smallest L2 norm are not kept.

    Returns 0 and 1 ``[rows, K]``, and how many groups of four the code under test decided.
    """
    norms = np.sqrt((x_h.reshape(len(x_h), x_h.shape[1] // 8, 4, 2) ** 2).sum(-1))
    by_norm = np.argsort(norms, axis=-1, kind="stable")
    kept = np.ones_like(norms)
    np.put_along_axis(kept, by_norm[..., :2], 0.0, axis=-1)
    pairs = decided.reshape(*norms.shape, 2)
    proposed = pairs[..., 0]
    smallest_kept = np.where(proposed == 1, norms, np.inf).min(-1)
    largest_pruned = np.where(proposed == 0, norms, -np.inf).max(-1)
    valid = (proposed == pairs[..., 1]).all(-1) & (proposed.sum(-1) == 2)
    valid &= smallest_kept >= largest_pruned - tolerance
    differs = valid & (kept != proposed).any(-1)
    kept = np.where(valid[..., None], proposed, kept)
    return kept.repeat(2, axis=-1).reshape(x_h.shape), int(differs.sum())


def _trusted(
    x_h: Array, values: Array, s: Array, recipe: Recipe, decided: Array, tolerance: Array
) -> tuple[Array, int]:
    """M: the error is at most T·rms, or ``|x_h| ≤ t·s``; and how many the code decided."""
    rms = s / recipe.alpha
    inner = np.zeros(x_h.shape, dtype=bool)
    if recipe.learned is not None:
        excess = abs(x_h) - s
    elif recipe.trust_error is not None:
        excess = abs(x_h - values) - recipe.trust_error * rms
    elif recipe.trust_scale is not None:
        trusts_all = np.isinf(recipe.trust_scale)
        excess = np.full_like(x_h, -np.inf) if trusts_all else abs(x_h) - recipe.trust_scale * s
    elif recipe.label == "fp4":
        excess = abs(x_h - values) - FP4_TRUST_ERROR * rms
    elif recipe.label == "1" and not recipe.sparse:
        excess = abs(x_h) - ONE_BIT_TRUST[recipe.rotation != "none"] * s
    else:
        excess = abs(x_h - values) - recipe.half_step * rms
        if not recipe.sparse:  # in the middle between two levels is trusted, whatever the rounding
            inner = abs(x_h) < s
    near = (abs(excess) <= tolerance) & ~inner
    own = (excess <= np.where(inner, tolerance, 0.0)).astype(float)
    mask = np.where(near, decided, own)
    return mask, int((mask != own).sum())


def _slopes(
    x_h: Array, values: Array, s: Array, inside: Array, terms: Array, recipe: Recipe
) -> dict[str, Slope]:
    """∂v/∂θ of the learned numbers.

    LSQ (arXiv 1902.08153, equation 3): ``(v - x)/step`` inside, the outermost level in steps
    outside. PACT (arXiv 1805.06085, equation 3): the sign of what lies outside. LSQ+ (arXiv
    2004.09576): the offset's is 1 outside.
    """
    lsq_factor = 1 / np.sqrt(x_h.size * recipe.gradient_factor)
    outside = 1 - inside
    slopes = {}
    if recipe.learned == "step":
        step = s / recipe.steps_to_edge
        outer = np.sign(x_h) * recipe.steps_to_edge
        slope = np.where(inside == 1, (values - x_h) / step, outer)
        slopes["scale"] = Slope(slope, inside * terms / step, lsq_factor)
    else:
        slopes["scale"] = Slope(np.sign(x_h) * outside, np.zeros_like(x_h), 1.0)
    if recipe.offset:
        slopes["offset"] = Slope(outside, np.zeros_like(x_h), lsq_factor)
    return slopes


def rows(kind: str, count: int, width: int, seed: int) -> Array:
    """Test rows ``[count, width]`` of one kind, exact in bf16."""
    rng = np.random.default_rng(seed)
    x = {
        "gaussian": lambda: rng.standard_normal((count, width)),
        "heavy-tailed": lambda: rng.standard_t(2, (count, width)),
        "constant": lambda: np.full((count, width), 1.5),
        "zero": lambda: np.zeros((count, width)),
        "outlier": lambda: np.eye(count, width, k=37) * 96.0,
    }[kind]()
    # seven bits of mantissa: bf16 holds eight
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 128) / 128, exponent)
