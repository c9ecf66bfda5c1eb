"""The angles of rotary positions, which cache and attention share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from questtrain.config import ModelConfig, RopeScaling, head_dim

Rotary = tuple[Tensor, Tensor]
"""cos and sin of the angles, fp32 ``[T, K]`` for T tokens and heads K wide, halves repeated."""


def rotary_angles(config: ModelConfig, positions_T: Tensor) -> Rotary:
    """The angles at integer positions, on their device."""
    angles = torch.outer(positions_T.float(), rotary_frequencies(config, positions_T.device))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotary_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians a position, fp32 ``[K/2]``, scaled where the model's are."""
    width = head_dim(config)
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-even / width)
    if config.rope_scaling is None:
        return frequencies
    return frequencies * _share(frequencies, config.rope_scaling)


def _share(frequencies: Tensor, scaling: RopeScaling) -> Tensor | float:
    """What is left of each frequency: 1/factor; with Llama 3's scaling all of it where the original
    context holds ``high_freq_factor`` periods or more, 1/factor where it holds ``low_freq_factor``
    or fewer, and between them a line in their number."""
    if scaling.rope_type == "linear":
        return 1 / scaling.factor
    periods = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((periods - low) / (high - low)).clamp(0, 1)
    return kept + (1 - kept) / scaling.factor
