"""The rival of a block's four linears: cuBLAS' products in BF16, alone and with what lies between.

The norms, the addition and SiLU·mul are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.bench.layer.quantizers import EPS
from questtrain.bench.layer.random_tensors import Tensors


class Inputs(NamedTuple):
    """bf16 rows: ``x`` and ``attention [M, hidden]``, ``inner [M, ffn]``; ``norm_weight [hidden]``.
    The linears take ``x, attention, x, inner``."""

    x: Tensor
    attention: Tensor
    inner: Tensor
    norm_weight: Tensor

    @property
    def of_linears(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of each linear, in their order."""
        return self.x, self.attention, self.x, self.inner


class Bf16Block:
    """A model's block in BF16 without attention; its ``compiled`` parts serve all row counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.compiler.reset()  # static widths for each model: only the rows may become dynamic
        self.norm = compiled(_norm, device)
        self.add_norm = compiled(_add_norm, device)
        self.swiglu = compiled(_swiglu, device)

    def __call__(self, inputs: Inputs, weights: Tensors) -> Tensor:
        x, attention, _, norm_weight = inputs
        qkv, o, gate_up, down = (weight.t() for weight in weights)
        torch.mm(self.norm(x, norm_weight), qkv)
        _, normed = self.add_norm(torch.mm(attention, o), x, norm_weight)
        return torch.mm(self.swiglu(torch.mm(normed, gate_up)), down)


def bf16_products(inputs: Inputs, weights: Tensors) -> None:
    """The four products of given bf16 rows."""
    for rows, weight in zip(inputs.of_linears, weights, strict=True):
        torch.mm(rows, weight.t())


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def _add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    hidden = x + residual
    return hidden, F.rms_norm(hidden, weight.shape, weight, EPS)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compiled for a GPU; a CPU's runs are for correctness and need no compiler."""
    return torch.compile(function) if device.type == "cuda" else function
