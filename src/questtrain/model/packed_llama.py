"""A Llama whose blocks run on integers: its products have packed weights, and each quantizes the
rows that it multiplies, in one kernel with the norm or SwiGLU that makes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from questtrain.kernels import (
    RowFormat,
    add_rmsnorm_linear,
    hadamard_linear,
    rmsnorm_linear,
    swiglu_linear,
)
from questtrain.model.llama import Llama
from questtrain.model.stacked_llama import StackedLlama, stacked_blocks
from questtrain.quant import PackedLinear
from questtrain.quant.packed_weight import IntegerWeight


class PackedProduct(IntegerWeight):
    """The `questtrain.model.stacked_llama.Product` of a packed weight ``[N, K]`` and rows that are
    quantized to ``activation``."""

    def __init__(self, weight: IntegerWeight, activation: RowFormat) -> None:
        super().__init__(weight.codes, weight.scales, weight.sums, weight.levels)
        self.activation = activation

    def plain(self, x_MK: Tensor) -> Tensor:
        return hadamard_linear(x_MK, self.activation, self.matrix(x_MK.shape[0]))

    def after_norm(
        self, x_MK: Tensor, added_MK: Tensor | None, norm_K: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        how = (norm_K, eps, self.activation, self.matrix(x_MK.shape[0]))
        if added_MK is None:
            return x_MK, rmsnorm_linear(x_MK, *how)
        return add_rmsnorm_linear(added_MK, x_MK, *how)

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return swiglu_linear(gate_up, self.activation, self.matrix(gate_up.shape[0]))


class PackedLlama(StackedLlama):
    """A `Llama` of packed products, for use and not for training."""

    @classmethod
    def of(cls, model: Llama) -> PackedLlama | None:
        """With what ``model`` holds, whose layers are packed already; None where some of them are
        no integer products, or share an input and do not quantize it alike."""
        blocks = stacked_blocks(model, packed_product)
        return None if blocks is None else cls(model, blocks)


def packed_product(linears: Sequence[nn.Module]) -> PackedProduct | None:
    """One product of layers that share their input, without their biases; None where they are not
    all of integers in the same format."""
    layers = [linear for linear in linears if isinstance(linear, PackedLinear)]
    kinds = {(each.activation, each.weight.levels, each.weight.is_packed) for each in layers}
    if len(layers) < len(linears) or len(kinds) > 1:
        return None
    weight = IntegerWeight.stacked([layer.weight for layer in layers])
    return PackedProduct(weight, layers[0].activation)
