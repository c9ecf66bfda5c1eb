"""The products of a model's blocks, as inference runs them: four linears a block.

Q, K and V share their input and are one product; so are gate and up.
"""

from __future__ import annotations

from dataclasses import dataclass

from questtrain.config import ModelConfig, intermediate_size

TOKENS = (1, 16, 64, 128, 512, 2048, 8192, 16384, 32768)
"""Rows of the activation that the figures cover: decoding at the left, prefill at the right."""

LARGER_MODELS = {"7B": ModelConfig("7B", 7_000_000_000, 32, 4096, 32)}
"""Shapes that are benchmarked but have no training settings: Llama 2 7B's (ffn 11008)."""


@dataclass(frozen=True)
class Product:
    """``[M, in_features] · [out_features, in_features]ᵀ``."""

    name: str
    out_features: int
    in_features: int

    def operations(self, tokens: int) -> int:
        """Multiplications and additions of the product."""
        return 2 * tokens * self.out_features * self.in_features


def block_products(model: ModelConfig) -> tuple[Product, Product, Product, Product]:
    """``qkv``, ``o``, ``gate_up``, ``down`` of one block."""
    hidden, width = model.hidden_size, intermediate_size(model)
    return (
        Product("qkv", 3 * hidden, hidden),
        Product("o", hidden, hidden),
        Product("gate_up", 2 * width, hidden),
        Product("down", hidden, width),
    )
