"""The four linears of a block: by themselves (figure 6), and with all that lies between them but
attention.

By themselves each linear takes bf16 rows, and ours quantizes them first:

    x → [quantize] → qkv;  attention → [quantize] → o;  x → [quantize] → gate and up;
    inner → [quantize] → down

Its rival is the same four products in BF16. The block is what inference runs, each quantizer
fused with the operation before it:

    x → RMSNorm → [quantize] → qkv; attention → [quantize] → o;
    + x → RMSNorm → [quantize] → gate and up → SiLU·mul → [quantize] → down

Its rival is the same block in BF16, the elementwise parts compiled. It is compared with the four
BF16 products alone too: the harder rival, without norms, addition and SiLU·mul.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from questtrain.bench.layer.bf16_block import Bf16Block, Inputs, bf16_products
from questtrain.bench.layer.products import Cases
from questtrain.bench.layer.quantizers import EPS
from questtrain.bench.layer.random_tensors import (
    Format,
    Tensors,
    matrix_of,
    normal,
    quantized,
    rotating,
    row_format,
)
from questtrain.bench.results import Row, timing_row
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import Sampler
from questtrain.config import ModelConfig
from questtrain.kernels import (
    Int8Matrix,
    PackedMatrix,
    add_rmsnorm_linear,
    hadamard_linear,
    rmsnorm_linear,
    swiglu_linear,
)
from questtrain.kernels.dispatch import most_packed_rows


class BlockBenchmark:
    """One model's block in one format; ``bf16_block`` is the rival, which all formats share."""

    def __init__(self, model: ModelConfig, formats: Format, bf16_block: Bf16Block) -> None:
        self.model, self.formats, self.bf16_block = model, formats, bf16_block
        self.device = bf16_block.device
        self.products = block_products(model)

    def measure(self, tokens: int, sample: Sampler) -> list[Row]:
        """A row for each case: microseconds, how its ``weights`` lie (bf16, packed or int8),
        ``tops`` of the products, ``speedup`` over ``bf16 products``; the blocks also have
        ``block_speedup``, over ``bf16 block``."""
        timings = sample(self.cases(tokens))
        operations = sum(product.operations(tokens) for product in self.products)
        usual, *others = weight_kinds(self.formats, tokens, self.device)
        weights = {"bf16 products": "bf16", "bf16 block": "bf16"}
        weights |= {f"linears {kind}": kind for kind in others}
        rows = []
        for case, timing in timings.items():
            numbers = {
                "tops": operations / timing.median / 1e6,
                "speedup": timings["bf16 products"].median / timing.median,
            }
            if case in ("bf16 block", "block"):
                numbers["block_speedup"] = timings["bf16 block"].median / timing.median
            what = {"part": "block", "tokens": tokens, "weights": weights.get(case, usual)}
            rows.append(timing_row(what, case, timing, **numbers))
        return rows

    def cases(self, tokens: int) -> Cases:
        """``linears`` and ``block`` with the weights that inference uses; ``linears packed`` or
        ``linears int8`` with the other ones, where the format has both."""
        inputs = self._inputs(tokens)
        weights = [
            normal(p.out_features, p.in_features, self.device, std=0.02) for p in self.products
        ]
        dense = rotating(tuple(weights), self.device)
        cases: Cases = {
            "bf16 products": [partial(bf16_products, inputs, w) for w in dense],
            "bf16 block": [partial(self.bf16_block, inputs, w) for w in dense],
        }
        usual, *others = weight_kinds(self.formats, tokens, self.device)
        operands = rotating(self._quantized_weights(weights, usual), self.device)
        cases["linears"] = [partial(self._linears, True, inputs, w) for w in operands]
        cases["linears no-hadamard"] = [partial(self._linears, False, inputs, w) for w in operands]
        cases["block"] = [partial(self._block, inputs, w) for w in operands]
        for kind in others:
            operands = rotating(self._quantized_weights(weights, kind), self.device)
            cases[f"linears {kind}"] = [partial(self._linears, True, inputs, w) for w in operands]
        return cases

    def _inputs(self, tokens: int) -> Inputs:
        hidden, device = self.model.hidden_size, self.device
        return Inputs(
            x=normal(tokens, hidden, device),
            attention=normal(tokens, hidden, device),
            inner=normal(tokens, self.products[3].in_features, device),
            norm_weight=1 + normal(1, hidden, device, std=0.1).flatten(),
        )

    def _quantized_weights(self, weights: list[Tensor], kind: str) -> Tensors:
        """Codes, scales and sums of the four weights, one after the other."""
        levels, packed = self.formats.weight_levels, kind == "packed"
        return tuple(t for w in weights for t in quantized(w, levels, packed))

    def _matrices(self, weights: Tensors) -> list[PackedMatrix | Int8Matrix]:
        return [
            matrix_of(*parts, self.formats)
            for parts in zip(weights[::3], weights[1::3], weights[2::3], strict=True)
        ]

    def _linears(self, rotate: bool, inputs: Inputs, weights: Tensors) -> None:
        for rows, matrix in zip(inputs.of_linears, self._matrices(weights), strict=True):
            hadamard_linear(rows, row_format(rows.shape[1], self.formats, rotate), matrix)

    def _block(self, inputs: Inputs, weights: Tensors) -> Tensor:
        x, attention, inner, norm_weight = inputs
        narrow = row_format(x.shape[1], self.formats)
        wide = row_format(inner.shape[1], self.formats)
        qkv, o, gate_up, down = self._matrices(weights)
        rmsnorm_linear(x, norm_weight, EPS, narrow, qkv)
        y = hadamard_linear(attention, narrow, o)
        _, y = add_rmsnorm_linear(y, x, norm_weight, EPS, narrow, gate_up)
        return swiglu_linear(y, wide, down)


def weight_kinds(formats: Format, tokens: int, device: torch.device) -> tuple[str, ...]:
    """How quantized weights can lie, first what inference uses for so many rows."""
    if not formats.packable:
        return ("int8",)
    return ("packed", "int8") if tokens <= most_packed_rows(device) else ("int8", "packed")
