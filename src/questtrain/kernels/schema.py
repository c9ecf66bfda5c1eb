"""The schemas of ``torch.ops.questtrain``, in one place; `load` finds the CUDA kernels for them."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("questtrain", "DEF")  # type: ignore[no-untyped-call]

_FORMAT = "int levels, float alpha, int block, bool packed, float? trust=None"
_QUANTIZED = "Tensor codes, Tensor scales, Tensor sums, Tensor mask"
_FUSED = "int levels, float alpha, Tensor weight, Tensor weight_scales, int weight_levels"
_X = "Tensor x, Tensor x_scales"
_INT8 = f"{_X}, Tensor weight, Tensor weight_scales, ScalarType dtype"
_INT4 = f"{_X}, Tensor x_sums, Tensor weight"

SCHEMAS = (
    f"hadamard_quantize(Tensor x, {_FORMAT}) -> ({_QUANTIZED})",
    f"rmsnorm_quantize(Tensor x, Tensor weight, float eps, {_FORMAT}) -> ({_QUANTIZED})",
    "add_rmsnorm_quantize(Tensor x, Tensor residual, Tensor weight, float eps,"
    f" {_FORMAT}) -> (Tensor hidden, {_QUANTIZED})",
    f"swiglu_quantize(Tensor gate_up, {_FORMAT}) -> ({_QUANTIZED})",
    f"int8_linear({_INT8}) -> Tensor",
    f"int8_linear_tile({_INT8}, int tile) -> Tensor",
    f"int8_offset_linear({_INT4}, Tensor weight_scales, Tensor weight_sums, int x_levels,"
    " int weight_levels, ScalarType dtype) -> Tensor",
    f"packed_linear({_INT4}, Tensor weight_scales, int levels, ScalarType dtype) -> Tensor",
    f"int4_linear({_INT4}, Tensor weight_scales, Tensor weight_sums, ScalarType dtype) -> Tensor",
    f"int4_sparse_linear({_X}, Tensor weight, Tensor metadata, Tensor weight_scales,"
    " ScalarType dtype) -> Tensor",
    "packed_weight_linear(Tensor x, Tensor weight, Tensor weight_scales, int levels, int block)"
    " -> Tensor",
    f"hadamard_quantize_linear(Tensor x, {_FUSED}) -> Tensor",
    f"rmsnorm_quantize_linear(Tensor x, Tensor norm_weight, float eps, {_FUSED}) -> Tensor",
    "add_rmsnorm_quantize_linear(Tensor x, Tensor residual, Tensor norm_weight, float eps,"
    f" {_FUSED}) -> (Tensor hidden, Tensor y)",
    f"swiglu_quantize_linear(Tensor gate_up, {_FUSED}) -> Tensor",
    "unpack(Tensor packed, int levels) -> Tensor",
    "dequantize(Tensor codes, Tensor scales, int levels, ScalarType dtype) -> Tensor",
    "hadamard_backward(Tensor grad, Tensor mask, int block) -> Tensor",
    "rmsnorm_backward(Tensor grad, Tensor mask, Tensor x, Tensor weight, float eps, int block,"
    " Tensor? residual_grad=None) -> (Tensor grad_x, Tensor grad_weight)",
    "rotary_(Tensor(a!) qkv, Tensor cos, Tensor sin, int heads) -> ()",
    "join_rotary(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin) -> Tensor",
    "add_weight_gradient_(Tensor(a!) total, Tensor grad, Tensor x, bool first, Tensor? unit=None)"
    " -> ()",
    "swiglu_backward(Tensor grad, Tensor mask, Tensor gate_up, int block) -> Tensor",
    "fp8_gradients(Tensor grad, Tensor weight_scales, Tensor x_scales) -> (Tensor rows,"
    " Tensor columns, Tensor unit_rows, Tensor unit_columns)",
    "fp8_transpose(Tensor codes, int levels) -> Tensor",
    "adamw_(Tensor(a!)[] weights, Tensor(b!)[] grads, Tensor(c!)[] means, Tensor(d!)[] squares,"
    " Tensor[] steps, Tensor? divisor, float lr, float beta1, float beta2, float eps,"
    " float weight_decay) -> ()",
    "cross_entropy_(Tensor(a!) logits, Tensor targets, int ignored) -> Tensor",
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values,"
    " Tensor position, Tensor cos, Tensor sin) -> Tensor",
)

for _schema in SCHEMAS:
    LIBRARY.define(_schema)  # type: ignore[no-untyped-call]

OPS = tuple(schema.split("(", 1)[0] for schema in SCHEMAS)
