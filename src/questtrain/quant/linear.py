"""`QuantLinear`, a drop-in `nn.Linear` whose two operands are quantized, and `convert`.

``y = Q(x_h)·Q(w_h)ᵀ``: both operands stay in Hadamard space, where the product equals the one in
the original space. The backward's products use the quantized operands, because they are what
autograd keeps of the forward product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import (
    Bits,
    QuantConfig,
    is_skipped,
    pair_rotations,
    parse_bits,
    validate_quant,
)
from questtrain.quant.build import build_quantizer
from questtrain.quant.method import method_config
from questtrain.quant.quantizer import Unquantized


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
        parsed = parse_bits(bits) if isinstance(bits, str) else bits
        quant = method_config(method)
        if parsed.quantized:
            validate_quant(quant, parsed)
        weight_rotation, activation_rotation = pair_rotations(parsed, quant)
        self.bits = parsed
        self.weight_quantizer = build_quantizer(parsed.weight, quant, weight_rotation, in_features)
        self.activation_quantizer = build_quantizer(
            parsed.activation, quant, activation_rotation, in_features, is_activation=True
        )
        # Learned scales stay in fp32 at least: bf16 could not follow their small updates.
        for quantizer in (self.weight_quantizer, self.activation_quantizer):
            quantizer.to(dtype=torch.promote_types(self.weight.dtype, torch.float32))
            if not self.weight.is_meta:
                quantizer.to(device=self.weight.device)

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


def convert(
    module: nn.Module,
    bits: str = "w4a4",
    method: str | QuantConfig = "quest",
    skip: Sequence[str] = ("lm_head",),
) -> nn.Module:
    """Turn every `nn.Linear` inside ``module`` into a `QuantLinear`, in place; returns it.

    Weights and biases are kept (the same Parameters, so an optimizer made before still holds
    them), and a layer used in two places stays one layer. ``skip`` are shell-style patterns
    of dotted module names that stay as they are.
    """
    if isinstance(module, nn.Linear) and not isinstance(module, QuantLinear):
        return _converted(module, bits, method)
    converted: dict[nn.Module, QuantLinear] = {}
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if isinstance(child, nn.TransformerEncoderLayer):
            # Its fused inference path would read the weights without calling the layers.
            child.activation_relu_or_gelu = 0
        if type(child) is not nn.Linear or is_skipped(name, skip):
            continue
        if child not in converted:
            converted[child] = _converted(child, bits, method)
        parent_name, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent_name), attribute, converted[child])
    return module


def _converted(linear: nn.Linear, bits: str, method: str | QuantConfig) -> QuantLinear:
    replacement = QuantLinear(
        linear.in_features, linear.out_features, False, bits, method, "meta", linear.weight.dtype
    )
    replacement.weight = linear.weight
    replacement.bias = linear.bias
    return replacement.to(linear.weight.device).train(linear.training)
