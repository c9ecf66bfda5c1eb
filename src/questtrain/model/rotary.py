"""The angles of rotary positions, which cache and attention share."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.config import ModelConfig

Rotary = tuple[Tensor, Tensor]
"""cos and sin of the angles, fp32 ``[T, K]`` for T tokens and heads K wide, halves repeated."""


def rotary_angles(config: ModelConfig, positions_T: Tensor) -> Rotary:
    """The angles at integer positions, on their device."""
    width = config.hidden_size // config.num_heads
    even = torch.arange(0, width, 2, device=positions_T.device, dtype=torch.float32)
    angles = torch.outer(positions_T.float(), config.rope_theta ** (-even / width))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()
