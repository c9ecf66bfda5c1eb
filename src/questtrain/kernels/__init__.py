"""Public ops of the ground floor; the plain-torch ones are specification and fallback."""

from questtrain.kernels.cross_entropy import linear_cross_entropy
from questtrain.kernels.dispatch import quantized_linear
from questtrain.kernels.extension import serves
from questtrain.kernels.formats import (
    Int8Matrix,
    PackedMatrix,
    Quantized,
    container_bits,
    pack_bits,
    unpack_bits,
)
from questtrain.kernels.fused import (
    RowFormat,
    add_rmsnorm_linear,
    hadamard_linear,
    rmsnorm_linear,
    swiglu_linear,
)
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.ops import (
    add_rmsnorm_quantize,
    decode_attention,
    hadamard_quantize,
    packed_weight_linear,
    rmsnorm_quantize,
    swiglu_quantize,
    unpack,
)

__all__ = [
    "Int8Matrix",
    "PackedMatrix",
    "Quantized",
    "RowFormat",
    "add_rmsnorm_linear",
    "add_rmsnorm_quantize",
    "container_bits",
    "decode_attention",
    "hadamard_linear",
    "hadamard_quantize",
    "hadamard_signs",
    "hadamard_transform",
    "linear_cross_entropy",
    "pack_bits",
    "packed_weight_linear",
    "quantized_linear",
    "rmsnorm_linear",
    "rmsnorm_quantize",
    "serves",
    "swiglu_linear",
    "swiglu_quantize",
    "unpack",
    "unpack_bits",
]
