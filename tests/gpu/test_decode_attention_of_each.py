"""The kernel of `decode_attention` where each sequence has a position of its own: against float64,
and the same bits whatever else is in the batch."""

import pytest
import torch

from questtrain.kernels import decode_attention
from questtrain.kernels.ops.decode_attention import HEAD_WIDTHS
from tests.gpu.kernel_cases import call, need_kernel, needs_kernels, same_bits
from tests.gpu.test_decode_attention import assert_attention
from tests.kernels.arguments import random_angles, random_rows, random_steps
from tests.kernels.exact_attention import exact_attention_of_each

pytestmark = [pytest.mark.gpu, needs_kernels]

OP = "decode_attention"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CAPACITY = 2100
POSITIONS = (0, 1, 17, 127, 128, 129, 256, 257, 511, 895, 1023, 1024, 1025, 1500, CAPACITY - 1)
"""Around the borders at which keys are shared out among one more softmax."""
NOWHERE = (-1, CAPACITY, 3, 1 << 40)


def compare(*step):
    exact, *caches = exact_attention_of_each(*step)
    y, lost = call(OP, *step), exact.isnan()
    assert torch.equal(y.isnan(), lost)
    assert_attention(y[~lost], exact[~lost])
    assert all(map(same_bits, step[3:5], caches)), "a place a sequence written, bit for bit"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("width", HEAD_WIDTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (20, 20)])
def test_each_is_attended_at_its_own_position(heads, kv_heads, width, dtype):
    """With more and with fewer blocks a head: 15 sequences of 2 and of 20 heads."""
    shape = (heads, width, CAPACITY)
    compare(*random_steps(POSITIONS, dtype, "cuda", *shape, kv_heads=kv_heads))


@pytest.mark.parametrize("positions", [(), (0,), (700,), NOWHERE, (5,) * 300])
def test_batches_of_any_size(positions):
    compare(*random_steps(positions, BF16, "cuda", 4, 128, CAPACITY))


@pytest.mark.parametrize("capacity", [1, 16, 64, 200])
def test_small_caches(capacity):
    positions = (0, capacity - 1, -1, capacity, capacity // 2)
    compare(*random_steps(positions, BF16, "cuda", 4, 64, capacity))


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("width", HEAD_WIDTHS)
def test_a_sequence_is_the_same_bits_in_any_batch(width, dtype):
    """Alone its keys are shared among 8 blocks a head, in large batches one block takes all."""
    need_kernel(OP)
    first = random_steps(POSITIONS, dtype, "cuda", 4, width, CAPACITY, kv_heads=2)
    alone = []
    for index in range(len(POSITIONS)):
        alone.append(decode_attention(*(x[index : index + 1].clone() for x in first)))
    for copies in (1, 3, 20):
        order = torch.randperm(copies * len(POSITIONS)).cuda()
        batch = [torch.cat([tensor] * copies)[order] for tensor in first]
        expected = torch.cat(alone * copies)[order]
        assert same_bits(decode_attention(*batch), expected)


def test_a_graph_replays_as_sequences_come_grow_and_go():
    need_kernel(OP)
    heads, kv_heads, width, capacity = 8, 4, 128, 400
    static = random_steps((-1,) * 6, BF16, "cuda", heads, width, capacity, kv_heads=kv_heads)
    decode_attention(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = decode_attention(*static)
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    for step in range(420):
        fresh = random_rows(6, sum(sizes), BF16, "cuda", step).split(sizes, 1)
        angles = random_angles(6, width, "cuda", step)
        for target, source in zip((*static[:3], *static[6:]), (*fresh, *angles), strict=True):
            target.copy_(source)
        begins = torch.tensor([0, 0, 7, 100, 150, 410], device="cuda")
        static[5].copy_(torch.where(step >= begins, step - begins, -1))
        exact, *caches = exact_attention_of_each(*static)
        graph.replay()
        lost = exact.isnan()
        assert torch.equal(y.isnan(), lost)
        assert_attention(y[~lost], exact[~lost])
        assert all(map(same_bits, static[3:5], caches))


def test_steps_that_follow_each_other_closely():
    """Each fed with the last one's result and position: as one by one."""
    need_kernel(OP)

    def decoded(wait):
        step = random_steps((0, 100, 130, 255), BF16, "cuda", 8, 64, 300, kv_heads=4)
        q, k, v, *rest = step
        results = []
        for _ in range(40):
            y = decode_attention(q, k, v, *rest)
            results.append(y)
            q, k = y, k + y[:, : k.shape[1]]
            rest[2] += 1
            if wait:
                torch.cuda.synchronize()
        return [*results, *rest[:2]]

    expected = decoded(wait=True)
    for _ in range(5):
        assert all(map(same_bits, decoded(wait=False), expected))


def test_other_head_widths_are_plain_torch():
    need_kernel(OP)
    step = random_steps((3, 0, -1, 39), BF16, "cuda", 4, 48)
    exact, *caches = exact_attention_of_each(*step)
    y, lost = decode_attention(*step), exact.isnan()
    assert torch.equal(y.isnan(), lost)
    assert_attention(y[~lost], exact[~lost])
    assert all(map(same_bits, step[3:5], caches))


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (5, torch.zeros(3, dtype=torch.int64), r"position must be a scalar or \[2\], not of sh"),
        (5, torch.zeros(2, 1, dtype=torch.int64), r"position must be a scalar or \[2\], not of"),
        (5, torch.zeros(2, dtype=torch.int32), "position must be int64, not torch.int32"),
        (5, torch.tensor(3), r"cos must be \[64\], not \[2, 64\]"),
        (6, torch.zeros(64), r"cos must have 2 dimensions, not shape \[64\]"),
        (7, torch.zeros(3, 64), r"sin must be \[2, 64\], not \[3, 64\]"),
        (7, torch.zeros(2, 64).double(), "sin must be float32, not torch.float64"),
    ],
)
def test_positions_and_angles_that_do_not_go_together_are_refused(index, wrong, message):
    need_kernel(OP)
    step = list(random_steps((3, 4), FP32, "cuda"))
    step[index] = wrong.cuda()
    with pytest.raises(RuntimeError, match=f"^decode_attention: {message}"):
        torch.ops.questtrain.decode_attention(*step)
