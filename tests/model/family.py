"""The Llama family in small: what is set beside a plain Llama of hidden size 128 and 4 heads."""

from __future__ import annotations

from typing import Any

from questtrain.config import ModelConfig, RopeScaling

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILY: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "one key": {"num_kv_heads": 1, "norm_eps": 1e-6},
    "tied": {"tie_embeddings": True, "num_kv_heads": 2},
    "wide heads": {"head_dim": 64, "num_kv_heads": 2},
    "llama3": {"rope_scaling": RopeScaling("llama3", **LLAMA3), "rope_theta": 5e5},
    "linear": {"rope_scaling": RopeScaling("linear", 2.5)},
    "qwen2": {"qkv_bias": True, "num_kv_heads": 2, "tie_embeddings": True},
    "qwen3": {"qk_norm": True, "num_kv_heads": 2, "head_dim": 64, "norm_eps": 1e-6},
}
"""Each differs from a plain Llama where its name says, and elsewhere as such models do."""


def small_model(**changes: Any) -> ModelConfig:
    """2 layers, 97 tokens."""
    return ModelConfig("small", 1, 2, 128, 4, 256, 97, **changes)
