"""`QuantLinear`, a drop-in `nn.Linear` whose two operands are quantized.

``y = Q(x_h)·Q(w_h)ᵀ``: both operands stay in Hadamard space, where the product equals the one in
the original space. The backward's products use the quantized operands, because they are what
autograd keeps of the forward product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import (
    Bits,
    QuantConfig,
    pair_rotations,
    parse_bits,
    validate_quant,
)
from questtrain.quant.build import build_quantizer
from questtrain.quant.method import method_config
from questtrain.quant.quantizer import Quantizer, Unquantized


class QuantLinear(nn.Linear):
    """``x [..., in_features] → [..., out_features]``; the weight stays in full precision."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        bits: str | Bits = "w4a4",
        method: str | QuantConfig = "quest",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.bits = parse_bits(bits) if isinstance(bits, str) else bits
        self.weight_quantizer, self.activation_quantizer = operand_quantizers(
            self.bits, method_config(method), in_features, self.weight
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activation_quantizer(x), self.weight_quantizer(self.weight), self.bias)

    @torch.no_grad()
    def freeze_weight(self) -> None:
        """Replace the weight by its quantized values, for use without training: same outputs,
        and the weight is no longer quantized at every call."""
        self.weight.copy_(self.weight_quantizer(self.weight))
        self.weight_quantizer = Unquantized()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def operand_quantizers(
    bits: Bits, quant: QuantConfig, width: int, weight: Tensor
) -> tuple[Quantizer | Unquantized, Quantizer | Unquantized]:
    """The quantizers of the weight and of the activations of a layer with ``width`` inputs, where
    ``weight`` is. UserError for a format, a method or a width that do not go together."""
    if bits.quantized:
        validate_quant(quant, bits)
    weight_rotation, activation_rotation = pair_rotations(bits, quant)
    pair = (
        build_quantizer(bits.weight, quant, weight_rotation, width),
        build_quantizer(bits.activation, quant, activation_rotation, width, is_activation=True),
    )
    # Learned scales stay in fp32 at least: bf16 could not follow their small updates.
    for quantizer in pair:
        quantizer.to(dtype=torch.promote_types(weight.dtype, torch.float32))
        if not weight.is_meta:
            quantizer.to(device=weight.device)
    return pair
