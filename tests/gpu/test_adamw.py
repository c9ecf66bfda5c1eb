"""The kernel of AdamW against torch's fused form, and against float64."""

import pytest
import torch

from questtrain.train.adamw import AdamW
from tests.gpu.kernel_cases import need_kernel, needs_kernels
from tests.kernels.arguments import random_adamw

pytestmark = [pytest.mark.gpu, needs_kernels]

SHAPES = [(1,), (3,), (7, 9), (640,), (0, 8), (33, 128), (513, 1031), (2048, 2048)]


def updated(weights, grads, means, squares, steps, divisor, lr, beta1, beta2, eps, decay):
    """In float64."""
    for weight, grad, mean, square, step in zip(
        *([tensor.double() for tensor in each] for each in (weights, grads, means, squares, steps)),
        strict=True,
    ):
        grad = grad / divisor.double() if divisor is not None else grad
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad.square()
        root = (square / (1 - beta2**step)).sqrt()
        yield (1 - lr * decay) * weight - lr / (1 - beta1**step) * mean / (root + eps), mean, square


@pytest.mark.parametrize("steps", [1, 7, 10000])
@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("shapes", [SHAPES, [(5, 3)] * 150, []])
def test_against_float64(shapes, divided, steps):
    need_kernel("adamw_")
    weights, grads, means, squares, counts, divisor, *rest = random_adamw(
        *shapes, device="cuda", steps=steps
    )
    divisor = divisor if divided else None
    expected = list(updated(weights, grads, means, squares, counts, divisor, *rest))
    kept = [grad.clone() for grad in grads]
    torch.ops.questtrain.adamw_(weights, grads, means, squares, counts, divisor, *rest)
    for *actual, exact in zip(weights, means, squares, expected, strict=True):
        for ours, theirs, size in zip(actual, exact, (1, 1e-2, 1e-4), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-7 * size)
    assert all(map(torch.equal, grads, kept))


def test_slices_that_start_anywhere():
    """Nothing beside them is touched."""
    need_kernel("adamw_")
    whole = random_adamw((5000,), device="cuda")
    part = random_adamw((5000,), device="cuda")
    before = [each[0].clone() for each in part[:4]]
    sliced = [[each[0][3:4001]] for each in part[:4]]
    torch.ops.questtrain.adamw_(*sliced, *part[4:])
    torch.ops.questtrain.adamw_(*whole)
    for ours, theirs, old in zip(part[:4], whole[:4], before, strict=True):
        assert torch.equal(ours[0][3:4001], theirs[0][3:4001])
        assert torch.equal(ours[0][:3], old[:3])
        assert torch.equal(ours[0][4001:], old[4001:])


def test_what_it_cannot_take_is_refused():
    need_kernel("adamw_")
    names = ("weights", "grads", "means", "squares", "steps")
    for index, name in enumerate(names):
        for change, message in (
            (torch.Tensor.double, f"{name} must be float32"),
            (torch.Tensor.cpu, f"{name} must be on cuda:0, not cpu"),
        ):
            operands = list(random_adamw((4, 6), (3,), device="cuda"))
            operands[index][1] = change(operands[index][1])
            with pytest.raises(RuntimeError, match=f"adamw_: {message}"):
                torch.ops.questtrain.adamw_(*operands)
    operands = list(random_adamw((4, 6), device="cuda"))
    operands[2] = [torch.zeros(4, 5, device="cuda")]
    with pytest.raises(RuntimeError, match=r"adamw_: means must be \[4, 6\], not \[4, 5\]"):
        torch.ops.questtrain.adamw_(*operands)
    with pytest.raises(RuntimeError, match="adamw_: 1 weights need as many of everything, not 0"):
        torch.ops.questtrain.adamw_(operands[0], [], *operands[2:])


def test_the_optimizer_is_torchs():
    need_kernel("adamw_")
    ours, theirs = (
        [torch.nn.Parameter(torch.linspace(-1, 1, n, device="cuda")) for n in (5, 4096)]
        for _ in range(2)
    )
    optimizers = (
        AdamW(ours, 0.1, (0.9, 0.95), 1e-8),
        torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True),
    )
    for turn in range(4):
        for each in (*ours, *theirs):
            each.grad = torch.linspace(-1, 2, each.numel(), device="cuda").roll(turn)
        for optimizer in optimizers:
            optimizer.grad_scale = torch.full((), 2.0, device="cuda")
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
