"""Quantizers of one operand with a Gaussian scale, and operands for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from questtrain.config import QuantConfig, parse_bits
from questtrain.quant.build import build_quantizer
from questtrain.quant.quantizer import Quantizer
from tests.quant.quest_reference import ALPHA, ALPHA_WITH_ZERO, Recipe

WIDTH = 256
ROTATIONS = ("none", "hadamard", "hadamard-back")


@dataclass(frozen=True)
class Format:
    """One way to store an operand: ``4``, ``fp4``, ``4s24``; on the centred or the int grid."""

    label: str
    grid: str = "centred"

    @property
    def sparse(self) -> bool:
        return self.label.endswith("s24")

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.label.removesuffix("s24"), zero=self.grid == "int", sparse=self.sparse)

    def quantizer(
        self, rotation: str = "hadamard", width: int = WIDTH, **settings: Any
    ) -> Quantizer:
        return make(self.label, rotation, width, grid=self.grid, **settings)

    def __str__(self) -> str:
        return self.label if self.grid == "centred" else f"{self.label}-{self.grid}"


UNIFORM = [Format(label) for label in ALPHA] + [Format(label, "int") for label in ALPHA_WITH_ZERO]
DENSE = [*UNIFORM, Format("fp4")]
SPARSE = [Format(f"{dense.label}s24", dense.grid) for dense in DENSE]
FORMATS = DENSE + SPARSE


def make(label: str, rotation: str = "hadamard", width: int = WIDTH, **settings: Any) -> Quantizer:
    """The quantizer of a weight: ``rotation`` is none, hadamard or hadamard-back."""
    number_format = parse_bits(f"w{label}a16").weight
    built = build_quantizer(number_format, QuantConfig(**settings), rotation, width)
    assert isinstance(built, Quantizer)
    return built


def gaussian(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask_of(quantizer: Quantizer, x: Tensor) -> Tensor:
    """M in the space of the quantization, as the backward shows it and `Quantizer.mask` says."""
    stored = quantizer.quantize(x)
    x_h = quantizer.rotation(x).detach().requires_grad_()
    quantizer.estimator(x_h, quantizer.dequantize(stored), stored.scale).sum().backward()
    assert x_h.grad is not None
    assert torch.equal(quantizer.mask(x), x_h.grad.bool())
    return x_h.grad
