"""The kernel of `decode_attention` against float64, and in programs."""

import pytest
import torch

from questtrain.kernels import decode_attention
from questtrain.kernels.ops.decode_attention import HEAD_WIDTHS
from tests.gpu.kernel_cases import call, need_kernel, needs_kernels, same_bits
from tests.kernels.arguments import random_rows, random_step
from tests.kernels.exact_attention import exact_decode_attention

pytestmark = [pytest.mark.gpu, needs_kernels]

OP = "decode_attention"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CAPACITY = 1100


def assert_attention(y, exact):
    """One rounding of the result, and what fp32 leaves of scores of order 10."""
    assert y.shape == exact.shape
    rounding = torch.finfo(y.dtype).eps / 2
    torch.testing.assert_close(y.double(), exact, rtol=rounding + 1e-5, atol=3e-5)


def compare(*step):
    exact, *caches = exact_decode_attention(*step)
    assert_attention(call(OP, *step), exact)
    assert all(map(same_bits, step[3:5], caches)), "one place written, bit for bit"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("width", HEAD_WIDTHS)
@pytest.mark.parametrize("position", [0, 1, 17, 511, CAPACITY - 1])
def test_it_is_rotation_cache_and_attention(position, width, dtype):
    for batch, heads in ((1, 16), (3, 5)):
        compare(*random_step(batch, dtype, "cuda", heads, width, CAPACITY, position))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("width", HEAD_WIDTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (16, 2), (14, 1), (15, 5)])
def test_heads_that_share_keys_and_values(heads, kv_heads, width, dtype):
    """The head that writes is the first of those that share: all see the new key."""
    for batch, position in ((1, 0), (1, 511), (3, 17), (5, CAPACITY - 1)):
        shape = (heads, width, CAPACITY, position)
        compare(*random_step(batch, dtype, "cuda", *shape, kv_heads=kv_heads))


@pytest.mark.parametrize(
    ("batch", "heads", "capacity", "position"),
    [
        (1, 1, 1, 0),  # the new token alone fits
        (1, 16, 64, 63),  # too few places for more than one block a head
        (1, 32, 4096, 4095),
        (1, 2, 32768, 30001),
        (40, 16, 200, 150),  # more heads than blocks at once
        (0, 4, 40, 17),
    ],
)
def test_shapes(batch, heads, capacity, position):
    compare(*random_step(batch, BF16, "cuda", heads, 128, capacity, position))


def test_contiguous_operands():
    q, k, v, *rest = random_step(3, BF16, "cuda")
    compare(q.contiguous(), k.contiguous(), v.contiguous(), *rest)


@pytest.mark.parametrize("position", [CAPACITY, -1, 1 << 40])
def test_a_position_outside_the_cache_is_nan_and_writes_nothing(position):
    step = random_step(2, BF16, "cuda", capacity=CAPACITY, position=CAPACITY)
    step[5].fill_(position)
    kept = [cache.clone() for cache in step[3:5]]
    assert call(OP, *step).isnan().all()
    assert all(map(same_bits, step[3:5], kept))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("index", range(5))
def test_what_is_no_number_shows_in_its_head_only(index, bad):
    """In q, k, v, the cached keys or values."""
    step = random_step(2, FP32, "cuda", 4, 64, 600, 517)
    operand = step[index]
    operand[(1, 2, 5, 7) if operand.dim() == 4 else (1, 2 * 64 + 7)] = bad
    exact, *_ = exact_decode_attention(*step)
    y = call(OP, *step)
    lost = ~y.isfinite().view(2, 4, 64)
    assert lost.sum() == lost[1, 2].sum()
    if bad != bad:
        assert torch.equal(y.isnan(), exact.isnan())
        assert lost.any()


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kv_heads", [16, 4])
def test_a_graph_replays_with_a_growing_position(width, kv_heads):
    static = random_step(1, BF16, "cuda", 16, width, 700, 0, kv_heads=kv_heads)
    decode_attention(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = decode_attention(*static)
    sizes = [16 * width, kv_heads * width, kv_heads * width]
    for position in range(700):
        fresh = random_rows(1, sum(sizes), BF16, "cuda", position).split(sizes, 1)
        for target, source in zip(static, fresh, strict=False):
            target.copy_(source)
        static[5].fill_(position)
        exact, *caches = exact_decode_attention(*static)
        graph.replay()
        assert_attention(y, exact)
        assert all(map(same_bits, static[3:5], caches))


def decoded(seed, steps=30):
    """Steps that follow each other closely, each fed with the last one's result."""
    q, k, v, *rest = random_step(2, BF16, "cuda", 8, 64, 300, 200, seed, kv_heads=4)
    position, results = rest[2], []
    for _ in range(steps):
        y = decode_attention(q, k, v, *rest)
        results.append(y)
        q, k = y, k + y[:, : k.shape[1]]
        position += 1
    return [*results, *rest[:2]]


def test_several_streams():
    """Steps of two sequences at once: the same bits as one after the other."""
    need_kernel(OP)
    expected = []
    for seed in (0, 1):
        expected.append(decoded(seed))
        torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(10):
        results = []
        for seed, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results.append(decoded(seed))
        torch.cuda.synchronize()
        for actual, wanted in zip(results, expected, strict=True):
            assert all(map(same_bits, actual, wanted))


def test_other_head_widths_are_plain_torch():
    step, twin = (random_step(2, BF16, "cuda", 4, 48) for _ in range(2))
    need_kernel(OP)
    with pytest.raises(RuntimeError, match="the head width 48 must be one of 32, 64, 128, 256"):
        torch.ops.questtrain.decode_attention(*step)
    exact, *caches = exact_decode_attention(*twin)
    assert_attention(decode_attention(*step), exact)
    assert all(map(same_bits, step[3:5], caches))


def test_rows_off_the_grid_of_16_bytes_are_refused():
    need_kernel(OP)
    q, *rest = random_step(2, BF16, "cuda")
    shifted = torch.cat([q, q], 1)[:, 1 : q.shape[1] + 1]
    with pytest.raises(RuntimeError, match="q's rows must start at multiples of 16 bytes"):
        torch.ops.questtrain.decode_attention(shifted, *rest)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_without_a_break():
    need_kernel(OP)

    def run(*step):
        return decode_attention(*step) + 1

    compiled = torch.compile(run, fullgraph=True)
    for position in (3, 4):
        one, other = (random_step(2, BF16, "cuda", position=position) for _ in range(2))
        assert same_bits(compiled(*one), run(*other))
        assert all(map(same_bits, one[3:5], other[3:5]))
