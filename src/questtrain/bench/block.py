"""The four linears of a block, one after the other, with all that lies between them but attention.

What runs in inference:

    x → RMSNorm → [quantize] → qkv; attention's output → [quantize] → o;
    + x → RMSNorm → [quantize] → gate and up → SiLU·mul → [quantize] → down

Ours fuses each quantizer with the operation before it. It is compared with two things: the four
BF16 products alone (``bf16 products``: the hardest rival, since ours includes the norms, the
addition and SiLU·mul, and it none of them), and the same block in BF16, its elementwise parts
compiled (``bf16 block``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.bench.operands import (
    Format,
    matrix_of,
    normal,
    quantized,
    rotating,
    row_format,
)
from questtrain.bench.products import Cases
from questtrain.bench.quantizers import EPS
from questtrain.bench.results import Row, timing_row
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import measure
from questtrain.config import ModelConfig
from questtrain.kernels import add_rmsnorm_linear, hadamard_linear, rmsnorm_linear, swiglu_linear
from questtrain.kernels.dispatch import MAX_PACKED_ROWS


class BlockBenchmark:
    """One model's block; ``compiled`` parts are shared by all row counts."""

    def __init__(self, model: ModelConfig, formats: Format, device: torch.device) -> None:
        self.model, self.formats, self.device = model, formats, device
        self.products = block_products(model)
        torch.compiler.reset()  # static widths for each model: only the rows may become dynamic
        self.norm = compiled(_norm, device)
        self.add_norm = compiled(_add_norm, device)
        self.swiglu = compiled(_swiglu, device)

    def measure(self, tokens: int, rounds: int, milliseconds: float) -> list[Row]:
        """A row for each case: microseconds, ``tops`` of the products, ``speedup`` over the BF16
        products alone and ``block_speedup`` over the BF16 block. ``quest`` is what inference
        uses: packed weights up to 64 rows, INT8 beyond; its forms with the weights of the other
        kind and without the Hadamard transform have names of their own."""
        timings = measure(self.cases(tokens), rounds, milliseconds, self.device)
        operations = sum(product.operations(tokens) for product in self.products)
        return [
            timing_row(
                {"part": "block", "tokens": tokens},
                case,
                timing,
                tops=operations / timing.median / 1e6,
                speedup=timings["bf16 products"].median / timing.median,
                block_speedup=timings["bf16 block"].median / timing.median,
            )
            for case, timing in timings.items()
        ]

    def cases(self, tokens: int) -> Cases:
        hidden, device = self.model.hidden_size, self.device
        down_features = self.products[3].in_features
        x, attention = normal(tokens, hidden, device), normal(tokens, hidden, device)
        norm_weight = 1 + normal(1, hidden, device, std=0.1).flatten()
        inner = normal(tokens, down_features, device)
        weights = [normal(p.out_features, p.in_features, device, std=0.02) for p in self.products]
        dense = rotating(tuple(weights), device)
        cases: Cases = {
            "bf16 products": [partial(_bf16_products, x, attention, inner, w) for w in dense],
            "bf16 block": [partial(self._bf16_block, x, attention, norm_weight, w) for w in dense],
        }
        usual, other = ("packed", "int8") if tokens <= MAX_PACKED_ROWS else ("int8", "packed")
        kinds = {"quest": (usual, True), "no-hadamard": (usual, False), other: (other, True)}
        for name, (kind, rotate) in kinds.items():
            if kind == "packed" and not self.formats.packable:
                kind = "int8"
            operands = rotating(self._quantized_weights(weights, kind == "packed", rotate), device)
            call = partial(self._quantized_block, rotate, x, attention, norm_weight)
            cases[name] = [partial(call, w) for w in operands]
        return cases

    def _quantized_weights(
        self, weights: list[Tensor], packed: bool, rotate: bool
    ) -> tuple[Tensor, ...]:
        """Codes, scales and sums of the four weights, one after the other."""
        levels = self.formats.weight_levels
        return tuple(t for w in weights for t in quantized(w, levels, packed, rotate))

    def _bf16_block(
        self, x: Tensor, attention: Tensor, norm_weight: Tensor, weights: tuple[Tensor, ...]
    ) -> Tensor:
        qkv, o, gate_up, down = (weight.t() for weight in weights)
        torch.mm(self.norm(x, norm_weight), qkv)
        _, normed = self.add_norm(torch.mm(attention, o), x, norm_weight)
        return torch.mm(self.swiglu(torch.mm(normed, gate_up)), down)

    def _quantized_block(
        self,
        rotate: bool,
        x: Tensor,
        attention: Tensor,
        norm_weight: Tensor,
        weights: tuple[Tensor, ...],
    ) -> Tensor:
        narrow = row_format(x.shape[1], self.formats, rotate)
        wide = row_format(self.products[3].in_features, self.formats, rotate)
        qkv, o, gate_up, down = (
            matrix_of(*parts, self.formats)
            for parts in zip(weights[::3], weights[1::3], weights[2::3], strict=True)
        )
        rmsnorm_linear(x, norm_weight, EPS, narrow, qkv)
        y = hadamard_linear(attention, narrow, o)
        _, y = add_rmsnorm_linear(y, x, norm_weight, EPS, narrow, gate_up)
        return swiglu_linear(y, wide, down)


def _bf16_products(
    x: Tensor, attention: Tensor, inner: Tensor, weights: tuple[Tensor, ...]
) -> None:
    for operand, weight in zip((x, attention, x, inner), weights, strict=True):
        torch.mm(operand, weight.t())


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
