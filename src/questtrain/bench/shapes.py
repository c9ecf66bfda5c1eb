"""The products of a model's blocks, as inference runs them: four linears a block.

Q, K and V share their input and are one product; so are gate and up.
"""

from __future__ import annotations

from dataclasses import dataclass

from questtrain.config import ModelConfig, intermediate_size

LARGER_MODELS = {"7B": ModelConfig("7B", 7_000_000_000, 32, 4096, 32)}
"""Shapes that are benchmarked but have no training settings: Llama 2 7B's (ffn 11008)."""


@dataclass(frozen=True)
class ProductShape:
    """``[M, in_features] · [out_features, in_features]ᵀ``."""

    name: str
    out_features: int
    in_features: int

    def operations(self, tokens: int) -> int:
        """Multiplications and additions of the product."""
        return 2 * tokens * self.out_features * self.in_features


def block_products(
    model: ModelConfig,
) -> tuple[ProductShape, ...]:
    """Four: ``qkv``, ``o``, ``gate_up``, ``down`` of one block."""
    hidden, width = model.hidden_size, intermediate_size(model)
    return (
        ProductShape("qkv", 3 * hidden, hidden),
        ProductShape("o", hidden, hidden),
        ProductShape("gate_up", 2 * width, hidden),
        ProductShape("down", hidden, width),
    )
