"""The Llama family in training: the fused model is the plain one, for each member."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from questtrain.model import Llama
from questtrain.store.checkpoint import open_checkpoint, save_checkpoint
from questtrain.train.step import TrainingStep
from tests.model.family import FAMILY, small_model
from tests.model.losses import (
    assert_close,
    batch,
    build_of,
    fuse,
    grads_of,
    loss_and_grads,
    plain_loss,
    whatever_training_warns_of,
)

if TYPE_CHECKING:
    from tests.conftest import Compose

pytestmark = whatever_training_warns_of


def model_of(name: str, bits: str) -> Llama:
    return build_of(small_model(**FAMILY[name]), bits)


@pytest.mark.parametrize("bits", ["bf16", "w2a2"])
@pytest.mark.parametrize("name", FAMILY)
def test_same_loss_and_gradients(name: str, bits: str) -> None:
    """In fp32, with and without a sum over micro-batches. A tied weight has the gradient of both
    of its uses."""
    model = model_of(name, bits)
    expected, grads = loss_and_grads(model, plain_loss(model))
    fused = fuse(model)
    loss, fused_grads = loss_and_grads(model, fused)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert_close(fused_grads, grads, 1e-5)
    model.zero_grad(set_to_none=True)
    with fused.summing_gradients():
        fused(*batch()).backward()
    assert_close(grads_of(model), grads, 1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_blocks_compile_whole(name: str) -> None:
    """No graph break in what the family adds to a block."""
    model = model_of(name, "w2a2")
    loss, grads = loss_and_grads(model, fuse(model))
    fused = fuse(model)
    torch.compiler.reset()
    for block in fused.layers:
        block.compile(fullgraph=True, dynamic=False, backend="eager")
    compiled_loss, compiled_grads = loss_and_grads(model, fused)
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    assert_close(compiled_grads, grads, 1e-5)


@pytest.mark.parametrize("name", ["grouped", "qwen2", "qwen3"])
def test_fp8_backward(name: str) -> None:
    """The same forward; gradients off by e4m3's rounding."""
    model = model_of(name, "w4a4")
    expected, grads = loss_and_grads(model, fuse(model, torch.bfloat16))
    loss, rounded = loss_and_grads(model, fuse(model, torch.bfloat16, backward="fp8"))
    assert loss == expected
    assert_close(rounded, grads, 0.06)


def test_biases_are_trained(compose: Compose) -> None:
    """They begin at zero, and are not decayed."""
    config = compose("nano", model={"num_layers": 2, "vocab_size": 97, "qkv_bias": True})
    step = TrainingStep(config, torch.device("cpu"))
    bias = step.model.layers[0].attention.q_proj.bias
    assert bias.abs().max() == 0
    assert_steps_lower_the_loss(step, config.lr)
    assert bias.abs().max() > 0
    assert any(weight is bias for weight in step.optimizer.param_groups[1]["params"])


def test_tied_embeddings_are_one_weight(compose: Compose, tmp_path: Path) -> None:
    """One parameter and one tensor of a checkpoint, which another model loads; no decay."""
    config = compose("nano", model={"num_layers": 2, "vocab_size": 97, "tie_embeddings": True})
    step = TrainingStep(config, torch.device("cpu"))
    assert_steps_lower_the_loss(step, config.lr)
    decayed, plain = (group["params"] for group in step.optimizer.param_groups)
    embedding = step.model.embed_tokens.weight
    assert any(weight is embedding for weight in plain)
    assert not any(weight is embedding for weight in decayed)
    folder = save_checkpoint(tmp_path, 3, {"model": step.model.state_dict()}, 1.0, 1)
    checkpoint = open_checkpoint(folder)
    assert not [name for name in checkpoint.tensors("model") if "lm_head" in name]
    other = Llama(config.model, config.bits, config.quant)
    checkpoint.load_weights(other)
    assert torch.equal(other.lm_head.weight, embedding)
    tokens = batch()[0]
    with torch.no_grad():
        assert torch.equal(other(tokens), step.model(tokens))


def assert_steps_lower_the_loss(step: TrainingStep, lr: float) -> None:
    rows = torch.cat([batch(rows=8)[0], batch(rows=8)[1][:, -1:]], 1).numpy()
    losses = [float(step(rows, lr)[0]) for _ in range(4)]
    assert losses[-1] < losses[0]
