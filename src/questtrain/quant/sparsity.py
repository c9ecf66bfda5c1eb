"""2:4 sparsity of pairs: of each four consecutive pairs, the two smaller ones become zero.

Half of the values go, in the pattern that sparse INT4 tensor cores read (quest.md, "What else the
paper compares").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairSparsity:
    """Chooses pairs by their L2 norm, before rounding; of equal ones the earlier is kept."""

    def kept(self, x: Tensor) -> Tensor:
        """bool ``[..., K]``: which values stay, 4 of each 8; K is a multiple of 8."""
        norms = x.reshape(*x.shape[:-1], x.shape[-1] // 8, 4, 2).square().sum(-1)
        ours, others = norms.unsqueeze(-1), norms.unsqueeze(-2)
        position = torch.arange(4, device=x.device)
        earlier = position.unsqueeze(0) < position.unsqueeze(1)
        beaten_by = ((others > ours) | ((others == ours) & earlier)).sum(-1)
        kept: Tensor = (beaten_by < 2).repeat_interleave(2, dim=-1)
        return kept.reshape(x.shape)
