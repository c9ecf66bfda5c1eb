"""Typed config, its validation, and everything that follows from it by arithmetic.

Imports neither torch nor anything of ours but `questtrain.errors`, so that every wing (and
``questtrain --help``) can afford it.
"""

from questtrain.config.bits import Bits, NumberFormat, parse_bits
from questtrain.config.derived import (
    block_linears,
    embedding_params,
    flops_per_token,
    head_dim,
    intermediate_size,
    kv_size,
    non_embedding_params,
    num_kv_heads,
    packed_block_bytes,
    quantized_params,
    query_size,
    steps,
    tokens,
    total_params,
    training_bytes,
    vector_params,
)
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import (
    DataConfig,
    LoggerConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    RopeScaling,
    ScheduleConfig,
    TrainConfig,
    is_operational,
)
from questtrain.config.skip import is_skipped
from questtrain.config.switch import (
    at_step,
    bits_at,
    bits_text,
    peak_training_bytes,
    phases,
    quantizes,
    switch_step,
)
from questtrain.config.target import check_target_width, targeted
from questtrain.config.validation import (
    check_group_width,
    check_sparse_width,
    hadamard_block,
    rows_per_process,
    validate,
    validate_model,
    validate_quant,
)

__all__ = [
    "Bits",
    "DataConfig",
    "LoggerConfig",
    "LoopConfig",
    "ModelConfig",
    "NumberFormat",
    "OptimConfig",
    "QuantConfig",
    "RopeScaling",
    "ScheduleConfig",
    "TrainConfig",
    "at_step",
    "bits_at",
    "bits_text",
    "block_linears",
    "check_group_width",
    "check_sparse_width",
    "check_target_width",
    "embedding_params",
    "flops_per_token",
    "hadamard_block",
    "head_dim",
    "intermediate_size",
    "is_operational",
    "is_skipped",
    "kv_size",
    "non_embedding_params",
    "num_kv_heads",
    "packed_block_bytes",
    "pair_rotations",
    "parse_bits",
    "peak_training_bytes",
    "phases",
    "quantized_params",
    "quantizes",
    "query_size",
    "rows_per_process",
    "steps",
    "switch_step",
    "targeted",
    "tokens",
    "total_params",
    "training_bytes",
    "validate",
    "validate_model",
    "validate_quant",
    "vector_params",
]
