"""The weights of a `FusedLlama`: the model's own, derived once a step, never stale, and where
their gradients go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from questtrain.model import Llama, products
from tests.model.losses import (
    assert_close,
    batch,
    build,
    fuse,
    grads_of,
    loss_and_grads,
    whatever_training_warns_of,
)

if TYPE_CHECKING:
    from tests.conftest import Compose

pytestmark = whatever_training_warns_of


def test_sums_of_gradients_in_fp8(compose: Compose) -> None:
    model = build(compose)
    fused = fuse(model, torch.bfloat16, backward="fp8")
    model.zero_grad(set_to_none=True)
    for seed in (5, 6):
        fused(*batch(seed)).backward()
    expected = grads_of(model)
    model.zero_grad(set_to_none=True)
    with fused.summing_gradients():
        for seed in (5, 6):
            fused(*batch(seed)).backward()
    assert_close(grads_of(model), expected, 1e-6)


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_sums_of_gradients(compose: Compose, bits: str) -> None:
    """Summed by the products, masked and rotated once: the gradients that autograd would add up."""
    model = build(compose, bits)
    fused = fuse(model)
    model.zero_grad(set_to_none=True)
    for seed in (5, 6, 7):
        fused(*batch(seed)).backward()
    expected = grads_of(model)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with fused.summing_gradients():
            for seed in (5, 6, 7):
                fused(*batch(seed)).backward()
            assert model.layers[0].mlp.up_proj.weight.grad is None
        assert_close(grads_of(model), expected, 1e-6)


def test_an_interrupted_sum_is_forgotten(compose: Compose) -> None:
    model = build(compose)
    fused = fuse(model)
    _, expected = loss_and_grads(model, fused)
    with suppress(KeyboardInterrupt), fused.summing_gradients():
        fused(*batch(5)).backward()
        raise KeyboardInterrupt
    assert_close(loss_and_grads(model, fused)[1], expected, 0.0)


def test_validation_between_micro_batches_adds_nothing(compose: Compose) -> None:
    model = build(compose)
    fused = fuse(model)
    _, expected = loss_and_grads(model, fused)
    model.zero_grad(set_to_none=True)
    with fused.summing_gradients():
        fused(*batch()).backward()
        with torch.no_grad():
            fused(*batch(9))
    assert_close(grads_of(model), expected, 1e-6)


def change_by_optimizer(model: Llama) -> None:
    torch.optim.AdamW(model.parameters(), lr=0.1).step()


def change_by_fused_optimizer(model: Llama) -> None:
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def change_by_loading(model: Llama) -> None:
    model.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})


def change_by_assigning(model: Llama) -> None:
    state = {key: nn.Parameter(2 * value) for key, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        parameter.data = state[name].data


def change_in_place(model: Llama) -> None:
    with torch.no_grad():
        model.layers[1].attention.v_proj.weight.mul_(-1)


@pytest.mark.parametrize(
    "change",
    [
        change_by_optimizer,
        change_by_fused_optimizer,
        change_by_loading,
        change_by_assigning,
        change_in_place,
    ],
)
@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_weights_are_never_stale(
    compose: Compose, bits: str, change: Callable[[Llama], None]
) -> None:
    """After whatever changes the parameters, the loss is that of a model made anew from them."""
    model = build(compose, bits)
    fused = fuse(model)
    before, _ = loss_and_grads(model, fused)
    change(model)
    after, grads = loss_and_grads(model, fused)
    fresh = build(compose, bits)
    fresh.load_state_dict(model.state_dict())
    expected, expected_grads = loss_and_grads(fresh, fuse(fresh))
    assert after != before
    assert after == expected
    assert_close(grads, expected_grads, 0.0)


def test_weights_are_quantized_once_a_step(compose: Compose) -> None:
    """Micro-batches, validation and recomputation use what the first forward made."""
    model = build(compose)
    fused = fuse(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    quantize = products.hadamard_quantize
    with mock.patch.object(products, "hadamard_quantize", side_effect=quantize) as counted:
        for step in (1, 2, 3):
            for seed in (1, 2):
                fused(*batch(seed)).backward()
            with torch.no_grad():
                fused(*batch(3))
            assert counted.call_count == step * 4 * len(model.layers)
            optimizer.step()


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_forgotten_weights_are_derived_anew(compose: Compose, bits: str) -> None:
    """They are gone, the parameters are not, and the next forward is what it was."""
    model = build(compose, bits)
    fused = fuse(model)
    expected = fused(*batch())
    assert any(True for _ in fused.buffers())
    fused.forget_weights()
    assert not any(True for _ in fused.buffers())
    assert torch.equal(fused(*batch()), expected)


def test_activation_checkpointing(compose: Compose) -> None:
    """Recomputing the blocks gives the same gradients."""
    model = build(compose)
    _, expected = loss_and_grads(model, fuse(model))
    fused = fuse(model)
    for block in fused.layers:
        inner = block.forward
        block.forward = lambda *arguments, inner=inner: checkpoint(
            inner, *arguments, use_reentrant=False
        )
    _, grads = loss_and_grads(model, fused)
    assert_close(grads, expected, 0.0)


def test_parameters_stay_the_models_own(compose: Compose) -> None:
    """The same objects, values and state_dict as before, although they share a storage now."""
    model = build(compose)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    fuse(model)(*batch())
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])
