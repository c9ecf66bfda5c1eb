"""Which parameters decay, and that AdamW's state survives the trip through named tensors."""

import torch

from questtrain.config import ModelConfig, OptimConfig, QuantConfig
from questtrain.model import Llama
from questtrain.train.optimizer import build_optimizer, optimizer_tensors, restore_optimizer


def small_model() -> Llama:
    model = Llama(ModelConfig("tiny", 1, 2, 32, 2, vocab_size=64), "w4a4", QuantConfig())
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def one_step(model, optimizer):
    model(torch.arange(8)[None]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_the_block_matrices_decay():
    """Seven matrices a block decay; embedding, LM head and norms do not."""
    model = small_model()
    groups = build_optimizer(model, OptimConfig(weight_decay=0.3), 1e-3).param_groups
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert len(names) == 2 * 7
    assert all(name.endswith("_proj.weight") for name in names)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.3, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_restored_state_continues_bit_for_bit():
    model, twin = small_model(), small_model()
    optimizer = build_optimizer(model, OptimConfig(), 1e-2)
    one_step(model, optimizer)
    saved = {name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()}
    twin.load_state_dict(model.state_dict())
    restored = build_optimizer(twin, OptimConfig(), 1e-2)
    restore_optimizer(saved, twin, restored)
    one_step(model, optimizer)
    one_step(twin, restored)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
