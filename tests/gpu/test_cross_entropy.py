"""The kernel of `cross_entropy_` against float64, and the head's loss in programs."""

import pytest
import torch
import torch.nn.functional as F

from questtrain.kernels import linear_cross_entropy
from tests.gpu.kernel_cases import need_kernel, needs_kernels, same_bits
from tests.kernels.arguments import device_generator, random_rows

pytestmark = [pytest.mark.gpu, needs_kernels]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IGNORED, GUARD = -100, 16

RELATIVE, UNDERFLOW = 1.5e-5, 1.2e-38
"""Error of a probability: its exponent is fp32 of up to 126, and below that it is 0."""


def call(logits, targets):
    """The op, twice: the same bits, and nothing written beside the logits."""
    need_kernel("cross_entropy_")
    results = []
    for _ in range(2):
        fenced = F.pad(logits.flatten(), (GUARD, GUARD), value=7.0)
        inner = fenced[GUARD:-GUARD].view_as(logits)
        losses = torch.ops.questtrain.cross_entropy_(inner, targets, IGNORED)
        assert (fenced[:GUARD] == 7).all()
        assert (fenced[-GUARD:] == 7).all()
        results.append((losses, inner))
    assert all(map(same_bits, *results))
    return results[0]


def random_targets(rows, width):
    generator = device_generator("cuda", 3)
    targets = torch.randint(width, (rows,), device="cuda", generator=generator)
    targets[2::5] = IGNORED
    return targets


def compare(logits, targets):
    losses, gradient = call(logits, targets)
    counted = (targets != IGNORED).unsqueeze(1)
    wide = logits.double()
    expected = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=3e-6)
    softmax = wide.softmax(1) * counted
    exact = softmax.scatter_add(
        1, targets.clamp(min=0).unsqueeze(1), torch.where(counted, -1.0, 0.0).double()
    )
    info = torch.finfo(logits.dtype)
    smallest = max(info.smallest_normal * info.eps, UNDERFLOW)
    allowed = info.eps / 2 * exact.abs() + RELATIVE * softmax + smallest
    assert ((gradient.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("width", [1, 3, 8, 1000, 1001, 32000, 50257, 131072])
def test_logits_become_their_gradient(width, dtype):
    """Rows that fit into shared memory and wider ones; such as start between two vectors."""
    for rows in (1, 37):
        compare(3 * random_rows(rows, width, dtype, "cuda"), random_targets(rows, width))


def test_large_logits():
    compare(60 * random_rows(37, 32000, FP32, "cuda"), random_targets(37, 32000))


def test_more_rows_than_blocks_at_once():
    compare(random_rows(3001, 1000, BF16, "cuda"), random_targets(3001, 1000))


def test_no_rows():
    losses, _ = call(torch.empty(0, 1000, dtype=BF16, device="cuda"), random_targets(0, 1000))
    assert losses.shape == (0,)


@pytest.mark.parametrize("width", [1001, 131072])
@pytest.mark.parametrize("target", [-1, 131072, 1 << 40])
def test_a_target_outside_the_vocabulary_is_nan(target, width):
    logits, targets = random_rows(37, width, BF16, "cuda"), random_targets(37, width)
    targets[3] = target
    losses, gradient = call(logits, targets)
    for result in (losses.isnan(), gradient.isnan().all(1), gradient.isnan().any(1)):
        assert result.nonzero().tolist() == [[3]]


@pytest.mark.parametrize("width", [1001, 131072])
@pytest.mark.parametrize("place", [0, 500, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_shows_in_its_row_only(bad, place, width):
    logits, targets = random_rows(37, width, BF16, "cuda"), random_targets(37, width)
    logits[2:4, place] = bad
    losses, gradient = call(logits, targets)
    assert targets[2] == IGNORED
    for result in (losses.isnan(), gradient.isnan().all(1), gradient.isnan().any(1)):
        assert result.nonzero().tolist() == [[3]]


def test_a_masked_logit_has_no_weight():
    logits, targets = 3 * random_rows(37, 32000, BF16, "cuda"), random_targets(37, 32000)
    logits[:, 8:] = -torch.inf
    compare(logits, targets.clamp(max=7))


def test_wrong_arguments_are_refused():
    need_kernel("cross_entropy_")
    op = torch.ops.questtrain.cross_entropy_
    logits, targets = random_rows(4, 64, BF16, "cuda"), random_targets(4, 64)
    for wrong, message in (
        ((logits[0], targets), "logits must have 2 dimensions"),
        ((logits.double(), targets), "logits must be bfloat16 or float16 or float32"),
        ((logits[:, ::2], targets), "logits must be contiguous"),
        ((logits[:, :0].contiguous(), targets), "logits must have columns"),
        ((logits, targets[:3]), r"targets must be \[4\], not \[3\]"),
        ((logits, targets.int()), "targets must be int64, not torch.int32"),
        ((logits, targets.cpu()), "targets must be on cuda:0, not cpu"),
    ):
        with pytest.raises(RuntimeError, match=f"cross_entropy_: {message}"):
            op(*wrong, IGNORED)


# ---- the head


def head(dtype, rows=1000, width=256, vocabulary=32000):
    x = random_rows(rows, width, dtype, "cuda").requires_grad_()
    weight = random_rows(vocabulary, width, FP32, "cuda", 1).div_(16).requires_grad_()
    return x, weight, random_targets(rows, vocabulary)


@pytest.mark.parametrize("rows", [333, 1000])
@pytest.mark.parametrize(("dtype", "near"), [(BF16, 8e-3), (FP16, 1e-3), (FP32, 1e-5)])
def test_it_is_the_cross_entropy_of_the_linear_layer(dtype, near, rows):
    """A chunk's targets may start at an odd one; gradients accumulate over two backwards."""
    need_kernel("cross_entropy_")
    torch.set_float32_matmul_precision("highest")
    x, weight, targets = head(dtype)
    for _ in range(2):
        loss = linear_cross_entropy(x, weight, targets, rows=rows)
        (loss / 1000).backward()
    wide = [a.detach().to(dtype).double().requires_grad_() for a in (x, weight)]
    expected = F.cross_entropy(F.linear(*wide), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=near / 4, atol=0)
    for operand, gradient in zip((x, weight), torch.autograd.grad(expected, wide), strict=True):
        wanted = gradient / 500
        assert (operand.grad.double() - wanted).norm() <= near * wanted.norm()
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(x, weight, targets, rows=rows), loss)


def test_logits_are_never_whole():
    need_kernel("cross_entropy_")
    x, weight, targets = head(BF16, rows=8192)
    for _ in range(2):  # the first time cuBLAS takes its workspace
        x.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_cross_entropy(x, weight, targets, rows=1024).backward()
    taken = torch.cuda.max_memory_allocated() - before
    chunk, copies = 1024 * 32000 * 2, weight.numel() * (2 + 4) + x.numel() * 2
    assert taken <= chunk + copies + 2**22


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at it
def test_a_compiled_caller():
    need_kernel("cross_entropy_")
    x, weight, targets = head(BF16)

    def run(x, weight):
        return linear_cross_entropy(x * 2, weight, targets, rows=512) / 1000

    expected = torch.autograd.grad(run(x, weight), (x, weight))
    actual = torch.autograd.grad(torch.compile(run, backend="aot_eager")(x, weight), (x, weight))
    assert all(map(torch.equal, actual, expected))
