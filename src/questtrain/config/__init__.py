"""Typed config, its validation, and everything that follows from it by arithmetic.

Imports neither torch nor anything of ours but `questtrain.errors`, so that every wing (and
``questtrain --help``) can afford it.
"""

from questtrain.config.bits import Bits, NumberFormat, parse_bits
from questtrain.config.derived import (
    flops_per_token,
    intermediate_size,
    non_embedding_params,
    packed_block_bytes,
    quantized_params,
    steps,
    tokens,
    total_params,
)
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import (
    DataConfig,
    LoggerConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
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
from questtrain.config.validation import (
    check_sparse_width,
    hadamard_block,
    rows_per_process,
    validate,
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
    "ScheduleConfig",
    "TrainConfig",
    "at_step",
    "bits_at",
    "bits_text",
    "check_sparse_width",
    "flops_per_token",
    "hadamard_block",
    "intermediate_size",
    "is_operational",
    "is_skipped",
    "non_embedding_params",
    "packed_block_bytes",
    "pair_rotations",
    "parse_bits",
    "peak_training_bytes",
    "phases",
    "quantized_params",
    "quantizes",
    "rows_per_process",
    "steps",
    "switch_step",
    "tokens",
    "total_params",
    "validate",
    "validate_quant",
]
