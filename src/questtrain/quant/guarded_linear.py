"""A trained layer in another library's model, under a name that no float weight fits.

A checkpoint of such layers holds, as ``NAME.weight``, a tensor without numbers. A program that
knows nothing of the quantization finds it where it wants a matrix and refuses the shape; without
it, names that it does not know would be skipped and the layer left random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questtrain.quant.linear import QuantLinear
from questtrain.quant.packed_weight import CodedWeight, IntegerWeight
from questtrain.quant.packing import pack_linear, packed_form
from questtrain.quant.quantizer import QuantizedTensor, Quantizer
from questtrain.quant.rotation import HadamardRotation
from questtrain.quant.stored_weight import StoredWeight


class GuardedLinear(nn.Module):
    """``x [..., K] → [..., N]`` in x's dtype by the trained layer, ``layer``: with packed codes
    where its weight is quantized, else a `QuantLinear` that quantizes its activations."""

    weight: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8))
        self.layer = layer

    @classmethod
    def of(cls, linear: QuantLinear) -> GuardedLinear:
        """From a trained layer."""
        packs = isinstance(linear.weight_quantizer, Quantizer)
        return cls(pack_linear(linear) if packs else linear).requires_grad_(False).eval()

    @classmethod
    def empty(cls, linear: QuantLinear) -> GuardedLinear:
        """What `of` would make of a layer that is on the meta device: it is there as well."""
        stored = _placeholder(linear)
        with torch.device("meta"):
            made = cls(linear if stored is None else packed_form(linear, stored))
        return made.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y

    def values(self) -> Tensor:
        """The weight in the space of its codes, ``[N, K]``; a weight without codes as it is."""
        weight = self.layer.weight
        if isinstance(weight, IntegerWeight):
            return weight.integers() * weight.scales.unsqueeze(1)
        return weight.values() if isinstance(weight, CodedWeight) else weight

    def write_signs(self) -> None:
        """Write the rotations' signs anew, which no checkpoint holds."""
        for module in self.modules():
            if isinstance(module, HadamardRotation):
                module.to(self.weight.device)


def _placeholder(linear: QuantLinear) -> QuantizedTensor | None:
    """Codes and scales without numbers; None of a weight that is not quantized."""
    stored = StoredWeight.of(linear)
    if stored is None:
        return None
    with torch.device("meta"):
        return QuantizedTensor(
            torch.empty(stored.shape, dtype=torch.uint8),
            torch.empty(stored.scales),
            None,
            torch.empty(stored.shape, dtype=torch.bool) if stored.sparse else None,
        )
