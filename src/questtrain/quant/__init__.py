"""Quantization by composition: rotation ∘ scale ∘ grid ∘ estimator → quantizer → linear."""

from questtrain.quant.linear import QuantLinear, convert
from questtrain.quant.quantizer import Quantizer, Unquantized

__all__ = ["QuantLinear", "Quantizer", "Unquantized", "convert"]
