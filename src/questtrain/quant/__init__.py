"""Quantization by composition.

rotation ∘ scale ∘ grid ∘ sparsity ∘ estimator → quantizer → linear
"""

from questtrain.quant.linear import QuantLinear, convert
from questtrain.quant.packing import PackedLinear, PackedWeightLinear, pack_linear
from questtrain.quant.quantizer import QuantizedTensor, Quantizer, Unquantized
from questtrain.quant.scale import learned_scalars

__all__ = [
    "PackedLinear",
    "PackedWeightLinear",
    "QuantLinear",
    "QuantizedTensor",
    "Quantizer",
    "Unquantized",
    "convert",
    "learned_scalars",
    "pack_linear",
]
