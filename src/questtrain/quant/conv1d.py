"""The linear layer of GPT-2 in Hugging Face's transformers, which is called Conv1D, quantized."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import Bits
from questtrain.quant.linear import QuantLinear
from questtrain.quant.quantizer import Quantizer, Unquantized


class QuantConv1D(nn.Module):
    """``x [..., in_features] → [..., out_features]`` with a weight stored as ``[in_features,
    out_features]``: the transposed one of a `QuantLinear`. `convert` turns a Conv1D into it, so
    that optimizers and checkpoints of the model keep their shapes."""

    weight: nn.Parameter
    bias: nn.Parameter
    bits: Bits
    weight_quantizer: Quantizer | Unquantized
    activation_quantizer: Quantizer | Unquantized

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight.t())
        return F.linear(self.activation_quantizer(x), weight, self.bias)

    def as_linear(self) -> QuantLinear:
        """The same layer with its weight the usual way round, a copy."""
        in_features, out_features = self.weight.shape
        linear = QuantLinear(in_features, out_features, bits="bf16", device="meta")
        linear.weight = nn.Parameter(self.weight.detach().t().contiguous())
        linear.bias = self.bias
        linear.bits = self.bits
        linear.weight_quantizer = self.weight_quantizer
        linear.activation_quantizer = self.activation_quantizer
        return linear.train(self.training)

    def extra_repr(self) -> str:
        in_features, out_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, bits={self.bits}"


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is such a layer: it is known by its name and what it holds, for transformers
    need not be installed."""
    own = dict(module.named_parameters(recurse=False))
    if type(module).__name__ != "Conv1D" or own.keys() != {"weight", "bias"}:
        return False
    weight, bias = own["weight"], own["bias"]
    return weight.ndim == 2 and bias.shape == weight.shape[1:] and not list(module.children())
