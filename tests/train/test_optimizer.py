"""Which parameters decay, and that AdamW's state survives the trip through named tensors."""

from dataclasses import replace

import pytest
import torch

from questtrain.config import ModelConfig, OptimConfig, QuantConfig
from questtrain.model import Llama
from questtrain.quant.method import method_config
from questtrain.train.optimizer import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)

QUEST = QuantConfig()


def small_model(quant: QuantConfig = QUEST) -> Llama:
    model = Llama(ModelConfig("tiny", 1, 2, 32, 2, vocab_size=64), "w4a4", quant)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def one_step(model, optimizer):
    model(torch.arange(8)[None]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_the_block_matrices_decay():
    """Seven matrices a block decay; embedding, LM head and norms do not."""
    model = small_model()
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3), QUEST, 1e-3).param_groups
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert len(names) == 2 * 7
    assert all(name.endswith("_proj.weight") for name in names)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.3, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_restored_state_continues_bit_for_bit():
    model, twin = small_model(), small_model()
    optimizer = build_optimizer(model, OptimConfig(), QUEST, 1e-2)
    one_step(model, optimizer)
    saved = {name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()}
    twin.load_state_dict(model.state_dict())
    restored = build_optimizer(twin, OptimConfig(), QUEST, 1e-2)
    restore_optimizer(saved, twin, restored)
    one_step(model, optimizer)
    one_step(twin, restored)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_learned_scales_have_groups_of_their_own():
    """Steps decay and learn at their share of the rate, offsets learn without decay, and the
    schedule reaches every group."""
    quant = replace(method_config("lsq-plus"), lr_scale=0.5, scale_weight_decay=0.2)
    model = small_model(quant)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3), quant, 1e-3)
    _, plain, scales, offsets = optimizer.param_groups
    assert [len(group["params"]) for group in (scales, offsets)] == [2 * 14, 14]
    assert (scales["weight_decay"], offsets["weight_decay"]) == (0.2, 0.0)
    assert all(parameter.shape == (1,) for parameter in (*scales["params"], *offsets["params"]))
    assert not {*scales["params"], *offsets["params"]} & {*plain["params"]}
    set_learning_rate(optimizer, 4e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [4e-3, 4e-3, 2e-3, 2e-3]


def test_the_speed_of_a_learned_scale_ignores_its_gradient_s_size():
    """Adam divides a gradient's size out, also one far below its usual eps: LSQ's scaling by the
    number of values, and with it the micro-batch, has no part in how fast steps learn."""
    quant = method_config("lsq")
    moved = []
    for size in (1.0, 1e-10):
        model = small_model(quant)
        optimizer = build_optimizer(model, OptimConfig(), quant, 1e-3)
        (step,) = optimizer.param_groups[2]["params"][:1]
        before = step.item()
        step.grad = torch.full_like(step, size)
        optimizer.step()
        moved.append(before - step.item())
    assert moved[0] == pytest.approx(1e-3, rel=0.2)
    assert moved[1] == pytest.approx(moved[0], rel=1e-4)
