"""QuEST in float64 numpy, written from quest.md and not from the code under test.

Nearest values are found by trying all of them; a rotation is a dense matrix; trust is the error
form. Where a value lies within rounding of the middle between two levels, either neighbour is
right: there, and only there, the codes of the code under test are taken over, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

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
ONE_BIT_TRUST = {True: 1.30, False: 1.25}  # trap 3: with and without the Hadamard transform


def hadamard(width: int, block: int = 128) -> Array:
    """The dense block-diagonal, orthonormal matrix ``[width, width]``."""
    one = scipy.linalg.hadamard(block) / np.sqrt(block)
    return scipy.linalg.block_diag(*[one] * (width // block))


@dataclass
class Operand:
    """What the forward product takes, and how a gradient finds its way back."""

    product: Array  # [rows, K], in the space of the product
    mask: Array  # [rows, K] of 0 and 1, in the space of the quantization
    basis: Array  # H, or the identity
    rotated_back: bool
    magnitude: Array  # of the terms that ``product`` was summed from
    ties: int = 0

    def backward(self, grad: Array) -> Array:
        """``(M ⊙ grad_{x_h})·Hᵀ``."""
        grad_h = grad @ self.basis if self.rotated_back else grad
        return (self.mask * grad_h) @ self.basis.T

    def backward_magnitude(self, grad: Array) -> Array:
        """The same with every term taken as positive: what rounding errors are relative to."""
        grad_h = grad @ abs(self.basis) if self.rotated_back else grad
        return (self.mask * grad_h) @ abs(self.basis).T


def unquantized(x: Array) -> Operand:
    return Operand(x, np.ones_like(x), np.eye(x.shape[1]), False, abs(x))


def quantized(
    x: Array, label: str, rotation: str, tie_codes: Array, tie_width: float, block: int = 128
) -> Operand:
    """Quantize ``[rows, K]``; ``tie_codes`` decide within ``tie_width`` half-widths of a tie."""
    basis = np.eye(x.shape[1]) if rotation == "none" else hadamard(x.shape[1], block)
    x_h = x @ basis
    rms = np.sqrt(np.mean(x_h**2, axis=1, keepdims=True))
    s = ALPHA[label] * rms
    n = LEVELS[label]
    levels = np.arange(n) * (2 / (n - 1)) - 1  # code·step - s, in units of s
    distance = abs(x_h[..., None] - s[..., None] * levels)
    nearest = distance.argmin(-1)
    at_tie_code = np.take_along_axis(distance, tie_codes[..., None].astype(int), -1)[..., 0]
    codes = np.where(at_tie_code <= distance.min(-1) + 2 * tie_width * s, tie_codes, nearest)
    values = s * levels[codes.astype(int)]
    if label == "1":
        mask = abs(x_h) <= ONE_BIT_TRUST[rotation != "none"] * s
    else:  # T is half a step; ties reach it up to rounding and are trusted
        mask = abs(x_h - values) <= s / (n - 1) + 2 * tie_width * s
    back = rotation == "hadamard-back"
    product = values @ basis.T if back else values
    magnitude = abs(values) @ abs(basis).T if back else abs(values)
    ties = int((codes != nearest).sum())
    return Operand(product, mask.astype(float), basis, back, magnitude, ties)


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
