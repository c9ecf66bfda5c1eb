"""AdamW with weight decay on the matrices of the blocks' linear layers only (quest.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questtrain.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, lr: float) -> torch.optim.AdamW:
    """Two parameter groups: decayed block matrices; embedding, head and norms without decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_block_matrix = name.startswith("layers.") and parameter.ndim == 2
        (decayed if is_block_matrix else plain).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=decayed[0].is_cuda,
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``{parameter name}.{key}`` → tensor."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """The inverse of `optimizer_tensors`, each tensor onto its parameter's device."""
    parameters = dict(model.named_parameters())
    fused = optimizer.defaults["fused"]
    for full_name, value in tensors.items():
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        stays_on_host = key == "step" and not fused
        optimizer.state[parameter][key] = value if stays_on_host else value.to(parameter.device)
