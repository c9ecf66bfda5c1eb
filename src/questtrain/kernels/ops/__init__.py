"""The ops, a family a module: each op's schema, arguments, plain-torch reference and function.

Where CUDA's library is loaded, its kernels serve every CUDA device; where the CPU's is, its
products serve every CPU; the references serve the rest.
"""

from questtrain.kernels import cpu_library, extension
from questtrain.kernels.ops import (
    adamw,
    backward,
    codes,
    cross_entropy,
    decode_attention,
    fp8,
    linear,
    packed_weight,
    quantize,
    quantize_linear,
    rotary,
    weight_gradient,
)

__all__ = [
    "adamw",
    "backward",
    "codes",
    "cross_entropy",
    "decode_attention",
    "fp8",
    "linear",
    "packed_weight",
    "quantize",
    "quantize_linear",
    "rotary",
    "weight_gradient",
]

extension.load_with_cuda()
cpu_library.load()
