"""A run's change to other number formats: another model of the same weights, trained on."""

from __future__ import annotations

import torch
from torch import nn

from questtrain.config import TrainConfig
from questtrain.model import Llama
from questtrain.quant import learned_scalars
from questtrain.train.optimizer import optimizer_tensors, restore_optimizer
from questtrain.train.step import TrainingStep


def switched(update: TrainingStep, config: TrainConfig) -> TrainingStep:
    """What trains ``config``, in other bits, from the weights that ``update`` has reached and with
    AdamW's moments of them; ``update`` is of no use afterwards.

    Learned scales are of one format: those of the new one are not initialised yet.
    """
    update.release()
    other = TrainingStep(config, update.device, update.world)
    before, after = _weights(update.model), _weights(other.model)
    with torch.no_grad():
        for name, weight in after.items():
            weight.copy_(before[name])
    moments = {
        name: tensor
        for name, tensor in optimizer_tensors(update.model, update.optimizer).items()
        if name.rpartition(".")[0] in after
    }
    restore_optimizer(moments, other.model, other.optimizer)
    return other


def _weights(model: Llama) -> dict[str, nn.Parameter]:
    """The parameters by name, without learned scales."""
    learned = {scalar.value for scalar in learned_scalars(model)}
    return {name: each for name, each in model.named_parameters() if each not in learned}
