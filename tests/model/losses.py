"""A small Llama, its loss and its gradients: what tests of `FusedLlama` compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from questtrain.config import ModelConfig
from questtrain.model import FusedLlama, Llama
from questtrain.quant.method import method_config

if TYPE_CHECKING:
    from tests.conftest import Compose

VOCAB, ROWS, LENGTH = 97, 4, 32
whatever_training_warns_of = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # the compiler looks
]

Grads = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def build(compose: Compose, bits: str = "w4a4", method: str = "quest") -> Llama:
    config = compose("nano", model={"num_layers": 2, "vocab_size": VOCAB})
    return build_of(config.model, bits, method)


def build_of(model: ModelConfig, bits: str = "w4a4", method: str = "quest") -> Llama:
    """Random weights, norms and biases included."""
    llama = Llama(model, bits, method_config(method))
    llama.init_weights(torch.Generator().manual_seed(0))
    for norm in (module for module in llama.modules() if isinstance(module, nn.RMSNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5, torch.Generator().manual_seed(1))
    for name, parameter in llama.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(parameter, 0.0, 0.1, torch.Generator().manual_seed(2))
    return llama


def fuse(
    model: Llama,
    dtype: torch.dtype = torch.float32,
    save: str = "codes",
    backward: str = "exact",
) -> FusedLlama:
    fused = FusedLlama.of(model, dtype, save, backward)
    assert fused is not None
    return fused


def batch(seed: int = 2, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (rows, LENGTH + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def plain_loss(model: Llama) -> Loss:
    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")

    return loss_of


def loss_and_grads(model: Llama, loss_of: Loss, seed: int = 2) -> tuple[float, Grads]:
    model.zero_grad(set_to_none=True)
    loss = loss_of(*batch(seed))
    loss.backward()
    return loss.item(), grads_of(model)


def grads_of(model: Llama) -> Grads:
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad.clone()
    return grads


def assert_close(ours: Grads, theirs: Grads, bound: float) -> None:
    """Each gradient's error is at most ``bound`` of its norm."""
    assert worst_error(ours, theirs) <= bound


def worst_error(ours: Grads, theirs: Grads) -> float:
    """The largest error of a gradient, of its norm."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - grad).norm() / grad.norm()) for name, grad in theirs.items())
