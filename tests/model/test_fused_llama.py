"""`FusedLlama` is the model it was made of: same loss, same gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F

import questtrain.train.step as step
from questtrain.errors import UserError
from questtrain.model import FusedLlama, Llama
from questtrain.train.parallel import World
from questtrain.train.step import TrainingStep
from tests.model.losses import (
    VOCAB,
    assert_close,
    batch,
    build,
    fuse,
    grads_of,
    loss_and_grads,
    plain_loss,
    whatever_training_warns_of,
    worst_error,
)

if TYPE_CHECKING:
    from tests.conftest import Compose

FUSED = ("bf16", "w1a1", "w1.58a1.58", "w2a2", "w3a3", "w4a4", "w8a8", "w4a8", "w8a4", "w2a4")
BY_VALUES = ("fp4", "w4a16", "w2a16", "w16a4", "w4s24a4", "wfp4a16", "w4s24a16")
pytestmark = whatever_training_warns_of


@pytest.mark.parametrize("bits", FUSED)
def test_same_loss_and_gradients(compose: Compose, bits: str) -> None:
    """In fp32 both are the same function, but for codes so near a tie that the order of additions
    decides, and that order is the processor's. Of few levels none is here; of more some are in
    some batches, and each moves by one level."""
    model = build(compose, bits)
    ties = "4" in bits or "8" in bits.replace("1.58", "")
    errors = []
    for seed in (2, 3, 4) if ties else (2,):
        expected, grads = loss_and_grads(model, plain_loss(model), seed)
        loss, fused_grads = loss_and_grads(model, fuse(model), seed)
        assert loss == pytest.approx(expected, rel=3e-4 if ties else 1e-6)
        errors.append(worst_error(fused_grads, grads))
    assert min(errors) < (1e-2 if ties else 1e-5)
    assert max(errors) < (1e-1 if ties else 1e-5)


@pytest.mark.parametrize("method", ["quest-noht", "clip", "ste"])
def test_methods_of_the_same_form(compose: Compose, method: str) -> None:
    """Unrotated, a product's integers are often exactly 0, which is a tie of the next quantizer;
    each method's layer by itself is compared in test_products.py."""
    model = build(compose, "w2a2", method)
    expected, _ = loss_and_grads(model, plain_loss(model))
    assert loss_and_grads(model, fuse(model))[0] == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("bits", BY_VALUES)
@pytest.mark.parametrize("method", ["quest", "quest-noht"])
def test_formats_whose_values_are_multiplied(compose: Compose, bits: str, method: str) -> None:
    model = build(compose, bits, method)
    expected, grads = loss_and_grads(model, plain_loss(model))
    fused = fuse(model)
    loss, ours = loss_and_grads(model, fused)
    assert loss == pytest.approx(expected, rel=3e-3)
    assert ours.keys() == grads.keys()
    for name, grad in grads.items():
        assert (ours[name] - grad).norm() <= 0.1 * grad.norm(), name


@pytest.mark.parametrize("method", ["lsq", "lsq-plus", "pact"])
def test_methods_without_kernels(compose: Compose, method: str) -> None:
    assert FusedLlama.of(build(compose, "w4a4", method), torch.float32) is None


def test_skipped_layers(compose: Compose) -> None:
    """A whole product in 16 bits is fused; one of the layers that share a product is not."""
    config = compose("nano", model={"num_layers": 2, "vocab_size": VOCAB})
    for skip, fuses in (("*.o_proj", True), ("*.q_proj", False)):
        config.quant.skip = [skip]
        model = Llama(config.model, "w4a4", config.quant)
        model.init_weights(torch.Generator().manual_seed(0))
        fused = FusedLlama.of(model, torch.float32)
        assert (fused is not None) == fuses
        if fused is not None:
            expected, _ = loss_and_grads(model, plain_loss(model))
            assert loss_and_grads(model, fused)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", ["w1a1", "w4a4", "w8a8"])
def test_packed_is_the_same_to_the_bit(compose: Compose, bits: str) -> None:
    model = build(compose, bits)
    loss, grads = loss_and_grads(model, fuse(model, torch.bfloat16))
    packed_loss, packed_grads = loss_and_grads(model, fuse(model, torch.bfloat16, "packed"))
    assert packed_loss == loss
    assert_close(packed_grads, grads, 0.0)


def test_bf16(compose: Compose) -> None:
    """Without quantization bf16's rounding is all the difference; with it, that of the operands
    moves some codes by a level."""
    for bits, bound in (("bf16", 0.03), ("w4a4", 0.4)):
        model = build(compose, bits)
        expected, grads = loss_and_grads(model, plain_loss(model))
        loss, fused_grads = loss_and_grads(model, fuse(model, torch.bfloat16))
        assert loss == pytest.approx(expected, rel=2e-3)
        assert_close(fused_grads, grads, bound)


@pytest.mark.parametrize("bits", ["w1a1", "w1.58a1.58", "w4a4", "w2a4"])
@pytest.mark.parametrize("save", ["codes", "packed"])
def test_fp8_backward(compose: Compose, bits: str, save: str) -> None:
    """The same forward; gradients off by e4m3's rounding, 2.6 % of a product, after two layers."""
    model = build(compose, bits)
    expected, grads = loss_and_grads(model, fuse(model, torch.bfloat16))
    loss, rounded = loss_and_grads(model, fuse(model, torch.bfloat16, save, "fp8"))
    assert loss == expected
    assert_close(rounded, grads, 0.06)
    for name, grad in grads.items():
        assert F.cosine_similarity(grad.flatten(), rounded[name].flatten(), dim=0) > 0.998, name


def test_gradients_that_are_no_numbers_stay_visible_in_fp8(compose: Compose) -> None:
    model = build(compose)
    fused = fuse(model, torch.bfloat16, backward="fp8")
    (fused(*batch()) * torch.inf).backward()
    assert not any(grad.isfinite().all() for grad in grads_of(model).values())


def test_formats_without_fp8_are_refused(compose: Compose) -> None:
    for bits, levels in (("w8a8", 256), ("w4a8", 256), ("w5a4", 32)):
        with pytest.raises(UserError, match=rf"bits={bits} has {levels}.*train.backward=exact"):
            FusedLlama.of(build(compose, bits), torch.bfloat16, backward="fp8")


def test_devices_without_fp8_are_refused(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are products that are not bf16, and micro-batches of odd sizes; the message says why."""
    config = compose("nano", model={"vocab_size": VOCAB}, train={"backward": "fp8"})
    with pytest.raises(
        UserError, match=r"FP8, and device=cpu is none: choose train.backward=exact"
    ):
        TrainingStep(config, torch.device("cpu"))
    gpu = torch.device("cuda")
    for capability, found, overrides, message in (
        ((8, 0), True, {}, "capability 8.9 or newer, here is 8.0"),
        ((9, 0), False, {}, "needs the CUDA kernels"),
        ((9, 0), True, {"train": {"backward": "fp8", "autocast": "none"}}, "train.autocast=none"),
        ((9, 0), True, {"batch_size": 6, "micro_batch_size": 2, "sequence_length": 20}, "2 × 20"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, of=capability: of)
        monkeypatch.setattr(step, "serves", lambda _, runs=found: runs)
        config = compose("nano", **{"train": {"backward": "fp8"}, **overrides})
        with pytest.raises(UserError, match=f"^train.backward=fp8 .*{message}.*: choose"):
            step.require_fp8(config, gpu, World())


@pytest.mark.parametrize(
    ("bits", "backward"),
    [("bf16", "exact"), ("w4a4", "exact"), ("w8a8", "exact"), ("w4a4", "fp8")],
)
def test_blocks_compile_whole(compose: Compose, bits: str, backward: str) -> None:
    """No graph break, and the same bits, forward and backward, with and without a sum."""
    model = build(compose, bits)
    dtype = torch.bfloat16 if backward == "fp8" else torch.float32
    loss, grads = loss_and_grads(model, fuse(model, dtype, backward=backward))
    fused = fuse(model, dtype, backward=backward)
    torch.compiler.reset()
    for block in fused.layers:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    compiled_loss, compiled_grads = loss_and_grads(model, fused)
    assert compiled_loss == loss
    assert_close(compiled_grads, grads, 0.0)
    model.zero_grad(set_to_none=True)
    with fused.summing_gradients():
        fused(*batch()).backward()
    assert_close(grads_of(model), grads, 1e-6)


def test_ignored_targets_count_in_no_loss(compose: Compose) -> None:
    model = build(compose)
    fused = fuse(model)
    inputs, targets = batch()
    alone = fused(inputs[:1], targets[:1])
    padded = targets.clone()
    padded[1:] = -100
    torch.testing.assert_close(fused(inputs, padded), alone)


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_without_gradients(compose: Compose, bits: str) -> None:
    """Validation has the loss of training, compiled too."""
    model = build(compose, bits)
    fused = fuse(model)
    loss, _ = loss_and_grads(model, fused)
    with torch.no_grad():
        assert fused(*batch()).item() == loss
        torch.compiler.reset()
        for block in fused.layers:
            block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        assert fused(*batch()).item() == loss
