"""What two models must have in common for one to take the other's weights: all that the model group
says but names, nominal size and initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from questtrain.config.derived import head_dim, intermediate_size, num_kv_heads
from questtrain.config.schema import ModelConfig

NO_SHAPE = ("name", "nominal_params", "init_std")
"""Settings of the model group that its weights do not depend on."""


def shape_differences(asked: ModelConfig, there: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Setting, value in ``asked`` and value in ``there`` where the two differ; what follows from
    other settings counts as if it were written, and a vocabulary that is not asked for is any."""
    mine, other = _shape(asked), _shape(there)
    for key, value in mine.items():
        if value != other[key] and not (key == "vocab_size" and value is None):
            yield key, value, other[key]


def _shape(model: ModelConfig) -> dict[str, Any]:
    resolved = {
        "intermediate_size": intermediate_size(model),
        "num_kv_heads": num_kv_heads(model),
        "head_dim": head_dim(model),
    }
    return {key: value for key, value in (asdict(model) | resolved).items() if key not in NO_SHAPE}
