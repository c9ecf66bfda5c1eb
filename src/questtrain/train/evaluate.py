"""Loss over tokens, for training and validation alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.train.parallel import World

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From inputs and targets, int64 ``[B, T]``, to their summed loss."""

IGNORED = -100
"""Target of padded positions; they count in no loss."""


def summed_loss(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed cross entropy in nats (a scalar) over all targets that are not `IGNORED`."""
    logits_BTV = model(inputs_BT)
    return F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def product_dtype(device: torch.device, autocast: str) -> torch.dtype:
    """In which the matrix products are: ``autocast`` is bf16, none, or auto: bf16 on GPUs."""
    use_bf16 = device.type == "cuda" if autocast == "auto" else autocast == "bf16"
    return torch.bfloat16 if use_bf16 else torch.float32


def loss_function(model: nn.Module, device: torch.device, autocast: str) -> Loss:
    """`summed_loss` of inputs and targets ``[B, T]`` in the precision of training on ``device``.

    ``autocast`` as in `product_dtype`.
    """
    use_bf16 = product_dtype(device, autocast) == torch.bfloat16
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # the rotations; see docs/lab-notes.md

    def loss_of(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
            return summed_loss(model, inputs_BT, targets_BT)

    return loss_of


@torch.no_grad()
def validation_loss(
    loss_of: Loss,
    batches: Iterable[np.ndarray],
    rows: int,
    device: torch.device,
    world: World,
) -> float:
    """Mean loss in nats a token over the ``batches`` of all ranks, int64 ``[≤ rows, T+1]``.

    A short last batch is padded to ``rows``, so that a compiled model sees one shape only.
    """
    total, count = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        tokens = torch.from_numpy(batch).to(device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        count += targets.numel()
        if (missing := rows - len(tokens)) > 0:
            inputs = F.pad(inputs, (0, 0, 0, missing))
            targets = F.pad(targets, (0, 0, 0, missing), value=IGNORED)
        total += loss_of(inputs.contiguous(), targets.contiguous())
    world.all_reduce([total, count])
    return float(total) / float(count)
