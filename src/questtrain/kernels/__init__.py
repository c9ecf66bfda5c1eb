"""Public ops of the ground floor; the plain-torch ones are specification and fallback."""

from questtrain.kernels.dispatch import quantized_linear, quantizes_on_the_way
from questtrain.kernels.formats import (
    Int8Matrix,
    PackedMatrix,
    Quantized,
    container_bits,
    pack_bits,
    unpack_bits,
)
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.ops import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
    unpack,
)

__all__ = [
    "Int8Matrix",
    "PackedMatrix",
    "Quantized",
    "add_rmsnorm_quantize",
    "container_bits",
    "hadamard_quantize",
    "hadamard_signs",
    "hadamard_transform",
    "pack_bits",
    "quantized_linear",
    "quantizes_on_the_way",
    "rmsnorm_quantize",
    "swiglu_quantize",
    "unpack",
    "unpack_bits",
]
