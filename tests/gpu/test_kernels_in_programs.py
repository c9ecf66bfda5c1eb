"""How the CUDA kernels behave in a program: graphs, streams, devices, compilation, refusals."""

import re

import pytest
import torch
from torch.utils._pytree import tree_leaves

import questtrain.kernels as kernels
from questtrain.kernels.formats import packed_integers
from questtrain.kernels.library import OPS
from tests.gpu.kernel_cases import (
    assert_linear,
    need_kernel,
    needs_kernels,
    on,
    same_bits,
    tensors,
)
from tests.kernels.arguments import (
    COLUMNS,
    EPSILON,
    LEVELS,
    QUANTIZERS,
    WIDTH,
    arguments,
    random_quantized,
    random_rows,
    random_weight,
    reference_of,
)
from tests.kernels.refusals import wrong_numbers, wrong_tensors

pytestmark = [
    pytest.mark.gpu,
    needs_kernels,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
BF16 = torch.bfloat16


@pytest.mark.parametrize("op", OPS)
def test_sanitize_every_op(op):
    """Odd shapes, once each: what to run under compute-sanitizer, `-k sanitize`."""
    need_kernel(op)
    for rows in (0, 1, 5):
        for packed in (False, True) if op in QUANTIZERS else (False,):
            operands = arguments(op, "cuda", rows, packed=packed)
            actual = tensors(getattr(torch.ops.questtrain, op)(*operands))
            meta = getattr(torch.ops.questtrain, op)(*on("meta", operands))
            for ours, fake in zip(actual, tensors(meta), strict=True):
                assert (ours.shape, ours.dtype) == (fake.shape, fake.dtype)
    torch.cuda.synchronize()


@pytest.mark.parametrize("op", OPS)
def test_graphs_replay_with_new_contents(op):
    need_kernel(op)
    function = getattr(torch.ops.questtrain, op)
    static = arguments(op, "cuda", seed=0)
    function(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*static)
    for seed in (10, 20):
        fresh = arguments(op, "cuda", seed=seed)
        for target, source in zip(tree_leaves(static), tree_leaves(fresh), strict=True):
            if isinstance(target, torch.Tensor):
                target.copy_(source)
        graph.replay()
        for actual, expected in zip(tensors(result), tensors(function(*fresh)), strict=True):
            assert same_bits(actual, expected)


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_argument_is_refused_in_the_references_words(op):
    need_kernel(op)
    for wrong, words in (*wrong_tensors(op, "cuda"), *wrong_numbers(op, "cuda")):
        with pytest.raises(RuntimeError, match=words) as expected:
            reference_of(op)(**wrong)
        with pytest.raises(RuntimeError, match=f"^{re.escape(str(expected.value))}$"):
            getattr(torch.ops.questtrain, op)(**wrong)


def block_of(weight):
    """A chain of dependent kernels, as a model runs them; ``x [M, WIDTH]`` to the same shape."""

    def run(x, residual, norm):
        x = kernels.rmsnorm_quantize(x, norm, EPSILON, 16, 2.5)
        x = kernels.quantized_linear(x, weight, BF16)
        hidden, x = kernels.add_rmsnorm_quantize(x, residual, norm, EPSILON, 16, 2.5)
        x = kernels.quantized_linear(x, weight, BF16)
        x = kernels.swiglu_quantize(torch.cat([x, hidden], 1), 16, 2.5)
        return kernels.quantized_linear(x, weight, BF16)

    return run


def chain_operands(rows, seed):
    norm = torch.ones(WIDTH, device="cuda")
    x, residual = (random_rows(rows, WIDTH, BF16, "cuda", seed + i) for i in range(2))
    return x, residual, norm


@pytest.mark.parametrize("rows", [1, 17, 300])
def test_kernels_that_overlap_their_predecessors(rows):
    """Without pauses, on two streams, and with a pause after each step: the same bits."""
    need_kernel(*QUANTIZERS, "packed_linear", "int8_linear", "unpack")
    run = block_of(random_weight(WIDTH, WIDTH, 16, "cuda"))
    inputs = [chain_operands(rows, 10 * i) for i in range(20)]
    torch.cuda.synchronize()
    expected = []
    for operands in inputs:
        expected.append(run(*operands))
        torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for index, operands in enumerate(inputs * 4):
        with torch.cuda.stream(streams[index % 2]):
            results.append(run(*operands))
    torch.cuda.synchronize()
    assert all(map(same_bits, results, expected * 4))


def test_compiled_without_a_break():
    need_kernel(*QUANTIZERS, "packed_linear", "int8_linear", "unpack")
    run = block_of(random_weight(WIDTH, WIDTH, 16, "cuda"))
    compiled = torch.compile(run, fullgraph=True)
    for rows in (4, 17):
        operands = chain_operands(rows, 0)
        assert same_bits(compiled(*operands), run(*operands))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("op", OPS)
def test_on_another_device_than_the_current(op):
    need_kernel(op)
    function = getattr(torch.ops.questtrain, op)
    operands = arguments(op, "cuda:0")
    for actual, expected in zip(
        tensors(function(*on("cuda:1", operands))), tensors(function(*operands)), strict=True
    ):
        assert actual.device == torch.device("cuda:1")
        assert same_bits(actual.to("cuda:0"), expected)


@pytest.mark.parametrize("rows", [1, 33, 64, 65, 300])
def test_quantized_linear_equals_the_product_of_values(rows):
    need_kernel("packed_linear", "int8_linear", "unpack")
    x = random_quantized(rows, WIDTH, LEVELS, "cuda")
    weight = random_weight(COLUMNS, WIDTH, LEVELS, "cuda")
    values = packed_integers(weight.codes, LEVELS)
    expected = reference_of("int8_linear")(*x[:2], values, weight.scales, BF16)
    dense = kernels.Int8Matrix(values, weight.scales)
    assert_linear(kernels.quantized_linear(x, weight, BF16), expected)
    assert_linear(kernels.quantized_linear(x, dense, BF16), expected)
