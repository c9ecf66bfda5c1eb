"""Tiny models of others, and tokens for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LENGTH = 128, 64, 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.silu(self.up(self.norm(x))))
        return y


class LanguageModel(nn.Module):
    """Of plain torch, with the names that torchtitan has: tokens ``[B, T]`` → ``[B, T, V]``."""

    def __init__(self, num_layers: int = 2) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(num_layers))
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.output(x)
        return y


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The mean cross entropy of the next token."""
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def rows(count: int) -> Tensor:
    """Random tokens ``[count, LENGTH]``, the same ones always."""
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))
