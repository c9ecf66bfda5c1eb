"""AdamW with weight decay on the matrices of the blocks' linear layers only (quest.md), and with
groups of their own for learned scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questtrain.config import OptimConfig, QuantConfig
from questtrain.errors import UserError
from questtrain.quant import learned_scalars
from questtrain.quant.scale import LearnedOffset
from questtrain.train.adamw import AdamW

SCALE_EPS = 1e-15
"""Adam's eps of learned scales. Their gradients shrink with the number of values they are summed
over; with the usual 1e-8 their speed would depend on the micro-batch."""

CLIP_EPS = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""


def build_optimizer(model: nn.Module, config: OptimConfig, quant: QuantConfig, lr: float) -> AdamW:
    """Parameter groups: decayed block matrices; embedding, head and norms without decay; learned
    scales, and learned offsets without decay.

    A group's ``lr_scale`` is its share of the schedule's learning rate, see `set_learning_rate`.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    offsets: list[nn.Parameter] = []
    for scalar in learned_scalars(model):
        (offsets if isinstance(scalar, LearnedOffset) else scales).append(scalar.value)
    learned = {*scales, *offsets}
    for name, parameter in model.named_parameters():
        if parameter not in learned:
            is_block_matrix = name.startswith("layers.") and parameter.ndim == 2
            (decayed if is_block_matrix else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    own = {"lr_scale": quant.lr_scale, "eps": SCALE_EPS}
    if scales:
        groups.append({"params": scales, "weight_decay": quant.scale_weight_decay, **own})
    if offsets:
        groups.append({"params": offsets, "weight_decay": 0.0, **own})
    return AdamW(groups, lr, (config.beta1, config.beta2), config.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@torch.no_grad()
def clipped_step(optimizer: AdamW, limit: float | None) -> Tensor:
    """A step with gradients scaled down to a norm of at most ``limit`` all together (None or 0: as
    they are); returns the norm before that. AdamW scales them as it reads them, which saves a
    pass."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit:
        optimizer.grad_scale = ((norm + CLIP_EPS) / limit).clamp_min(1.0)
    optimizer.step()
    return norm


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
    """The inverse of `optimizer_tensors`, each tensor onto its parameter's device; UserError for
    the state of another model."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise UserError(f"the optimizer's state is of another model: it holds {full_name}.")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)
