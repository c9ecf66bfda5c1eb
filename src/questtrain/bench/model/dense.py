"""The BF16 rival of inference: a Llama in as few products as the packed one has.

Compiled, a norm and the residual addition before it are one kernel. Attention, embedding and head
are the packed Llama's own. Shape suffixes as in `questtrain.model.stacked_llama`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.model import Llama, StackedLlama
from questtrain.model.stacked_llama import stacked_blocks


class PlainProduct(nn.Module):
    """The `questtrain.model.stacked_llama.Product` of 16-bit weights, in their dtype."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weights = [linear.weight.detach() for linear in linears]
        stacked = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.weight = nn.Parameter(stacked, requires_grad=False)

    def plain(self, x_MK: Tensor) -> Tensor:
        """In three dimensions: of two, Inductor makes the residual addition a part of the product,
        which takes a decoding step on an H200 1 to 2% longer."""
        return F.linear(x_MK.unsqueeze(1), self.weight).squeeze(1)

    def after_norm(
        self, x_MK: Tensor, added_MK: Tensor | None, norm_K: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x_MK = x_MK if added_MK is None else x_MK + added_MK
        return x_MK, self.plain(F.rms_norm(x_MK, norm_K.shape, norm_K, eps))

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.plain(F.silu(gate) * up)


def stacked(model: Llama) -> StackedLlama:
    """The same Llama, of 16-bit weights, in four products a block."""
    blocks = stacked_blocks(model, PlainProduct)
    assert blocks is not None
    return StackedLlama(model, blocks)
