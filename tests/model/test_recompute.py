"""Activation checkpointing: less is kept for the backward, and every bit is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tests.model.losses import batch, build, fuse, loss_and_grads, plain_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch of itself
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # the compiler looks
]
KINDS = ("none", "blocks", "gate_up")


@pytest.fixture(autouse=True)
def one_thread():
    """Several add up a compiled embedding's gradient in the order in which they come."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Kept:
    """Bytes of the tensors that a forward keeps, each memory once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._seen.values())


def trained(compose, kind, bits, method, fused, compiled):
    """The loss and all gradients, and the bytes that were kept for them."""
    model = build(compose, bits, method)
    model.recompute(kind)
    loss_of = plain_loss(model)
    if fused:
        loss_of = fuse(model)
        loss_of.recompute(kind)
        if compiled:
            loss_of.compile_parts()
    with torch.no_grad():
        loss_of(*batch())  # learned scales start
    kept = Kept()
    with saved_tensors_hooks(kept, lambda tensor: tensor):
        return *loss_and_grads(model, loss_of), kept


@pytest.mark.parametrize(
    ("bits", "method", "fused", "compiled"),
    [
        ("w4a4", "quest", True, False),
        ("bf16", "quest", True, False),
        ("w4a4", "lsq-plus", False, False),
        ("w4a4", "quest", True, True),
    ],
)
def test_the_same_bits_and_less_that_is_kept(compose, bits, method, fused, compiled) -> None:
    results = {kind: trained(compose, kind, bits, method, fused, compiled) for kind in KINDS}
    loss, grads, kept = results["none"]
    for kind in ("blocks", "gate_up"):
        other_loss, other_grads, _ = results[kind]
        assert other_loss == loss
        assert all(torch.equal(other_grads[name], grad) for name, grad in grads.items())
    blocks, gate_up = (results[kind][2].bytes for kind in ("blocks", "gate_up"))
    assert blocks < gate_up < 0.8 * kept.bytes


def test_nothing_is_kept_where_nothing_is_trained(compose) -> None:
    model = build(compose)
    model.recompute("blocks")
    kept = Kept()
    with torch.no_grad(), saved_tensors_hooks(kept, lambda tensor: tensor):
        plain_loss(model)(*batch())
    assert kept.bytes == 0
