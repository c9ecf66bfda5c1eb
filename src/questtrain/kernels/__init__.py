"""Public ops of the ground floor; the plain-torch ones are specification and fallback."""

from questtrain.kernels.dispatch import (
    add_rmsnorm_linear,
    hadamard_linear,
    quantized_linear,
    rmsnorm_linear,
    swiglu_linear,
)
from questtrain.kernels.extension import serves
from questtrain.kernels.formats import (
    Int8Matrix,
    PackedMatrix,
    Quantized,
    RowFormat,
    container_bits,
    pack_bits,
    unpack_bits,
)
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.ops.codes import unpack
from questtrain.kernels.ops.cross_entropy import linear_cross_entropy
from questtrain.kernels.ops.decode_attention import decode_attention
from questtrain.kernels.ops.packed_weight import packed_weight_linear
from questtrain.kernels.ops.quantize import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
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
