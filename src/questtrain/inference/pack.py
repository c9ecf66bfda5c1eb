"""`pack`: from a trained model to one that holds packed weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from questtrain.errors import UserError, unknown
from questtrain.model import Llama, PackedLlama
from questtrain.quant import (
    PackedWeightLinear,
    QuantConv1D,
    QuantLinear,
    pack_linear,
)
from questtrain.quant.packed_weight import CodedWeight, IntegerWeight

PREFILL = ("unpack", "int8")


@torch.no_grad()
def pack(model: nn.Module, dtype: torch.dtype | None = None, prefill: str = "unpack") -> nn.Module:
    """A copy of ``model``, for use and not for training, whose quantized weights are packed.

    A `Llama` becomes a `PackedLlama`, which fuses its operations, where all its layers are integer
    products; in every other case each quantized layer is replaced. What is not packed (embedding,
    norms, head) is cast to ``dtype``, by default left as it is. ``prefill="int8"`` keeps INT8
    values beside the packed codes, so that products of many rows need not unpack them: one byte a
    weight. Raises UserError where there is nothing to pack.
    """
    if prefill not in PREFILL:
        raise unknown("prefill", prefill, PREFILL)
    packed = copy.deepcopy(model, _packed_linears(model))
    if isinstance(packed, Llama):
        packed = PackedLlama.of(packed) or packed
    if prefill == "int8":
        for module in packed.modules():
            if isinstance(module, IntegerWeight):
                module.keep_int8()
    if dtype is not None:
        packed.to(dtype)
    return packed.eval().requires_grad_(False)


def _packed_linears(model: nn.Module) -> dict[int, nn.Module]:
    """The packed form of each quantized layer, by its id: what a deep copy is to find already
    copied. Layers of 16-bit weights stay what they are."""
    packed: dict[int, nn.Module] = {
        id(module): pack_linear(
            module.as_linear() if isinstance(module, QuantConv1D) else module,
            name or type(module).__name__,
        )
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear | QuantConv1D) and module.bits.weight.quantized
    }
    if not packed:
        raise UserError(
            f"this {type(model).__name__} has no layer with a quantized weight, so there is nothing"
            " to pack; questtrain.convert(model, bits='w4a4') makes such layers."
        )
    return packed


def multiplies_as_stored(model: nn.Module) -> bool:
    """Whether no layer of a packed model has to make a matrix of its weight's values first."""
    layers = [module for module in model.modules() if isinstance(module, PackedWeightLinear)]
    dtype = next(model.parameters()).dtype
    return all(layer.multiplies_as_stored(dtype) for layer in layers)


def block_weight_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers that are packed or can be, biases left out: codes and scales, or
    a quantized layer's weight in its dtype."""
    total = 0
    for module in model.modules():
        if isinstance(module, IntegerWeight | CodedWeight):
            total += module.bytes()
        elif isinstance(module, QuantLinear | QuantConv1D):
            total += module.weight.numel() * module.weight.element_size()
    return total
