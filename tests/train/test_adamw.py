"""The optimizer is torch's AdamW."""

import pytest
import torch

from questtrain.train.adamw import AdamW

SHAPES = [(3, 5), (64,), (1,), (0, 4), (2, 3, 7)]


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def groups(weights):
    """Two of one optimizer, which differ in all that a group may differ in."""
    return [
        {"params": weights[:2], "weight_decay": 0.3, "lr": 0.02},
        {"params": weights[2:], "weight_decay": 0.0, "eps": 1e-4, "betas": (0.8, 0.99)},
    ]


def set_gradients(weights, turn, divisor=1.0):
    for index, weight in enumerate(weights):
        generator = torch.Generator().manual_seed(100 * turn + index)
        weight.grad = torch.randn(*weight.shape, generator=generator) / divisor


@pytest.mark.parametrize("divisor", [None, 5.0])
def test_its_steps_are_torchs(divisor):
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(groups(ours), 0.1, (0.9, 0.95), 1e-8)
    expected = torch.optim.AdamW(groups(theirs), lr=0.1, betas=(0.9, 0.95), eps=1e-8)
    if divisor:
        optimizer.grad_scale = torch.tensor(divisor)
    for turn in range(5):
        set_gradients(ours, turn)
        set_gradients(theirs, turn, divisor or 1.0)
        if turn == 2:
            ours[0].grad = theirs[0].grad = None
        optimizer.step()
        expected.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(dict(optimizer.state[mine]), dict(expected.state[other]))


def test_its_state_is_torchs():
    """Either goes on from the other's."""
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(groups(ours), 0.1, (0.9, 0.95), 1e-8)
    expected = torch.optim.AdamW(groups(theirs), lr=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for turn in range(4):
        for weights, each in ((ours, optimizer), (theirs, expected)):
            set_gradients(weights, turn)
            each.step()
        if turn == 1:
            states = optimizer.state_dict()["state"], expected.state_dict()["state"]
            for each, state in ((optimizer, states[1]), (expected, states[0])):
                each.load_state_dict({**each.state_dict(), "state": state})
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_gradients_may_lie_scattered_and_a_closure_is_called():
    weight = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = AdamW([weight], 0.1, (0.9, 0.95), 1e-8)

    def closure():
        weight.grad = torch.ones(6, 4).t()
        return 7

    assert optimizer.step(closure) == 7
    torch.testing.assert_close(weight.detach(), torch.full((4, 6), 1 - 0.1 * 0.01 - 0.1))
