"""Quantization by composition.

rotation ∘ scale ∘ grid ∘ sparsity ∘ estimator → quantizer → linear
"""

from questtrain.quant.conv1d import QuantConv1D
from questtrain.quant.conversion import convert
from questtrain.quant.linear import QuantLinear
from questtrain.quant.packing import PackedLinear, PackedWeightLinear, pack_linear
from questtrain.quant.quantizer import QuantizedTensor, Quantizer, Unquantized
from questtrain.quant.scale import learned_parameters, learned_scalars

__all__ = [
    "PackedLinear",
    "PackedWeightLinear",
    "QuantConv1D",
    "QuantLinear",
    "QuantizedTensor",
    "Quantizer",
    "Unquantized",
    "convert",
    "learned_parameters",
    "learned_scalars",
    "pack_linear",
]
