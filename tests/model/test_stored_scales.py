"""Runs on the grids that files store: the fused model trains as the plain one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from questtrain.config import parse_bits, targeted
from questtrain.model import FusedLlama, Llama
from questtrain.model.products import DenseProduct, QuantizedProduct
from questtrain.quant.method import method_config
from tests.model.losses import VOCAB, Loss, batch, fuse, plain_loss, whatever_training_warns_of

if TYPE_CHECKING:
    from tests.conftest import Compose

pytestmark = whatever_training_warns_of
STEPS = 4


def build(compose: Compose, bits: str, **settings: Any) -> Llama:
    config = compose("nano", model={"num_layers": 2, "vocab_size": VOCAB})
    quant = targeted(replace(method_config("quest"), **settings), parse_bits(bits))
    llama = Llama(config.model, bits, quant)
    llama.init_weights(torch.Generator().manual_seed(0))
    return llama


def train(model: nn.Module, loss_of: Loss) -> list[float]:
    """A few steps of AdamW on one batch; their losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(*batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("bits", "settings", "kind"),
    [
        ("w4a16", {"target": "gguf", "group_size": 32}, DenseProduct),
        ("w2a16", {"target": "mlx"}, DenseProduct),
        ("w2a16", {"group_size": 64, "scale_dtype": "bfloat16"}, DenseProduct),
        ("w1a1", {"scale_dtype": "float16"}, QuantizedProduct),
        ("w2a2", {"group_size": 32, "scale_dtype": "float16"}, DenseProduct),
        ("w2a2", {"scale_dtype": "float16"}, QuantizedProduct),
    ],
)
def test_trains_as_the_plain_model(
    compose: Compose, bits: str, settings: dict[str, Any], kind: type[nn.Module]
) -> None:
    """The same losses over steps that change the weights, but for codes of activations so near a
    tie that the order of additions decides; they fall."""
    plain = build(compose, bits, **settings)
    other = copy.deepcopy(plain)
    fused: FusedLlama = fuse(other)
    assert all(isinstance(product, kind) for product in fused._products)
    losses, theirs = train(other, fused), train(plain, plain_loss(plain))
    assert losses == pytest.approx(theirs, rel=1e-5 if bits.endswith("a16") else 1e-2)
    assert theirs[-1] < 0.95 * theirs[0]
