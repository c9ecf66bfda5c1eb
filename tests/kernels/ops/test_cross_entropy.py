"""The head's loss in chunks, against torch's own of whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from questtrain.kernels import linear_cross_entropy
from tests.kernels.arguments import random_rows

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
M, D, V, IGNORED = 50, 24, 97, -100
OP = torch.ops.questtrain.cross_entropy_

NEAR = {FP32: 1e-6, FP16: 1e-3, BF16: 8e-3}
"""Relative error of a gradient: G is rounded to the dtype, and so are the logits it is made of."""


def head(x_dtype=FP32, weight_dtype=FP32, rows=M):
    """x, weight and targets, some of them ignored."""
    x = random_rows(rows, D, x_dtype).requires_grad_()
    weight = (random_rows(V, D, FP32, seed=1) / 4).to(weight_dtype).requires_grad_()
    targets = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
    targets[1::7] = IGNORED
    return x, weight, targets


def exact(x, weight, targets, ignored=IGNORED):
    """Loss and gradients in float64, of the weight as it is cast to x's dtype."""
    x, weight = (a.detach().to(x.dtype).double().requires_grad_() for a in (x, weight))
    loss = F.cross_entropy(F.linear(x, weight), targets, ignore_index=ignored, reduction="sum")
    return loss, *torch.autograd.grad(loss, (x, weight))


def assert_near(actual, expected, tolerance):
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, FP32), (BF16, BF16), (FP16, FP32)])
@pytest.mark.parametrize("rows", [1, 7, 25, M, 4096])
def test_it_is_the_cross_entropy_of_the_linear_layer(rows, dtypes):
    x, weight, targets = head(*dtypes)
    loss = linear_cross_entropy(x, weight, targets, rows=rows)
    assert (loss.dtype, loss.shape) == (FP32, ())
    expected, *gradients = exact(x, weight, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=NEAR[x.dtype] / 4, atol=0)
    for operand, actual, gradient in zip(
        (x, weight), torch.autograd.grad(loss, (x, weight)), gradients, strict=True
    ):
        assert actual.dtype == operand.dtype
        assert_near(actual, gradient, NEAR[x.dtype])


def test_another_ignored_target():
    x, weight, targets = head()
    targets[::3] = 5
    loss = linear_cross_entropy(x, weight, targets.clamp(min=0), 5, rows=16)
    torch.testing.assert_close(loss.double(), exact(x, weight, targets.clamp(min=0), 5)[0])


@pytest.mark.parametrize("rows", [0, 1])
def test_no_targets_no_loss(rows):
    x, weight, targets = head(BF16, rows=rows)
    loss = linear_cross_entropy(x, weight, targets.fill_(IGNORED))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_gradients_accumulate_and_are_scaled_in_fp32():
    """A factor that bf16 would round by 2^-9."""
    x, weight, targets = head(BF16)
    _, grad_x, grad_weight = exact(x, weight, targets)
    factor = 1 + 2**-9
    for _ in range(3):
        (linear_cross_entropy(x, weight, targets, rows=16) * factor).backward()
    assert weight.grad.dtype == FP32
    assert_near(weight.grad, 3 * factor * grad_weight, NEAR[BF16])
    (plain,) = torch.autograd.grad(linear_cross_entropy(x, weight, targets), x)
    x.grad = None
    (linear_cross_entropy(x, weight, targets) * factor).backward()
    assert torch.equal(x.grad, (plain.float() * factor).to(BF16))
    assert_near(x.grad, factor * grad_x, NEAR[BF16])


@pytest.mark.parametrize("which", [0, 1])
def test_only_one_gradient_is_asked_for(which):
    operands = head()[:2]
    targets = head()[2]
    operands[1 - which].requires_grad_(False)
    linear_cross_entropy(*operands, targets, rows=16).backward()
    assert_near(operands[which].grad, exact(*operands, targets)[1 + which], NEAR[FP32])
    assert operands[1 - which].grad is None


def test_the_backward_runs_once():
    loss = linear_cross_entropy(*head())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: the backward runs once"):
        loss.backward()


def test_autocast_changes_nothing():
    x, weight, targets = head()
    expected = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    assert all(map(torch.equal, torch.autograd.grad(loss, (x, weight)), expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at it
def test_a_compiled_caller_breaks_its_graph_around_it():
    def run(x, weight, targets):
        return linear_cross_entropy(2 * x, weight, targets, rows=16) / 3

    graphs = []

    def backend(module, _):
        graphs.append([node.target for node in module.graph.nodes if "call" in node.op])
        return module.forward

    arguments = head()
    assert torch.equal(torch.compile(run, backend=backend)(*arguments), run(*arguments))
    assert [len(graph) for graph in graphs] == [1, 1]


class Tensors(TorchDispatchMode):
    """Notes what the ops return: the largest size, and how many matrix products there were."""

    def __init__(self):
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        result = function(*arguments, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return result


def test_logits_are_never_whole():
    x, weight, targets = head()
    with Tensors() as seen:
        linear_cross_entropy(x, weight, targets, rows=26).backward()
    assert seen.largest == 26 * V
    assert seen.products == 2 * 3


@pytest.mark.parametrize("needed", [False, True])
def test_without_gradients_there_are_only_losses(needed):
    x, weight, targets = head(BF16)
    with torch.no_grad(), Tensors() as seen:
        loss = linear_cross_entropy(x, weight, targets, rows=25)
    assert seen.products == 2
    assert not loss.requires_grad
    if not needed:
        x, weight = x.detach(), weight.detach()
    other = linear_cross_entropy(x, weight, targets, rows=25)
    assert torch.equal(loss, other)
    assert other.requires_grad == needed


# ---- the op


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_opcheck(dtype):
    for rows in (1, 5):
        opcheck(OP, (random_rows(rows, V, dtype), head()[2][:rows].contiguous(), IGNORED))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_logits_become_their_gradient(dtype):
    logits, targets = 3 * random_rows(M, V, dtype), head()[2]
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none")
    losses = OP(logits, targets, IGNORED)
    assert losses.dtype == FP32
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(logits.double(), gradient, rtol=rounding, atol=3e-7)
    assert not logits[targets == IGNORED].any()


@pytest.mark.parametrize("target", [-1, V, 1 << 40])
def test_a_target_outside_the_vocabulary_is_nan(target):
    logits, targets = random_rows(M, V, BF16), head()[2]
    targets[3] = target
    losses = OP(logits, targets, IGNORED)
    for result in (losses.isnan(), logits.isnan().all(1), logits.isnan().any(1)):
        assert result.nonzero().tolist() == [[3]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_shows_in_its_row_only(bad):
    logits, targets = random_rows(M, V, BF16), head()[2]
    logits[[1, 3], 7] = bad
    losses = OP(logits, targets, IGNORED)
    assert targets[1] == IGNORED
    for result in (losses.isnan(), logits.isnan().all(1), logits.isnan().any(1)):
        assert result.nonzero().tolist() == [[3]]


def test_a_masked_logit_has_no_weight():
    logits, targets = random_rows(M, V, FP32), head()[2].fill_(0)
    logits[:, 7] = -torch.inf
    others = torch.cat([logits[:, :7], logits[:, 8:]], 1)
    torch.testing.assert_close(OP(logits, targets, IGNORED), OP(others, targets, IGNORED))
    assert not logits[:, 7].any()


# ---- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(M)}, r"x must have 2 dimensions, not shape \[50\]"),
        ({"x": torch.ones(M, D).double()}, "x must be bfloat16 or float16 or float32, not"),
        ({"x": torch.ones(D, M).T}, "x must be contiguous"),
        ({"weight": torch.ones(V, D + 1)}, r"weight must be \['any', 24\], not \[97, 25\]"),
        ({"weight": torch.ones(V, D).bfloat16()}, "weight must be float32, not torch.bfloat16"),
        ({"weight": torch.ones(0, D)}, r"weight must have rows, not shape \[0, 24\]"),
        ({"weight": torch.ones(V, D, device="meta")}, "weight must be on cpu, not meta"),
        ({"targets": torch.ones(M - 1).long()}, r"targets must be \[50\], not \[49\]"),
        ({"targets": torch.ones(M)}, "targets must be int64, not torch.float32"),
        ({"rows": 0}, "rows must be 1 or more, not 0"),
    ],
)
def test_wrong_arguments_are_refused(changed, message):
    x, weight, targets = head()
    arguments = {"x": x, "weight": weight, "targets": targets, **changed}
    with pytest.raises(RuntimeError, match=f"^linear_cross_entropy: {message}"):
        linear_cross_entropy(**arguments)


def test_the_op_refuses_too():
    targets = head()[2]
    with pytest.raises(RuntimeError, match=r"^cross_entropy_: logits must have columns, not shape"):
        OP(torch.ones(M, 0), targets, IGNORED)
    with pytest.raises(RuntimeError, match=r"^cross_entropy_: targets must be \[3\], not \[50\]"):
        OP(torch.ones(3, V), targets, IGNORED)
