"""Products of packed codes on both sides: where, and that nothing changes but the way."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import questtrain.kernels as kernels
from questtrain.kernels import RowFormat, dispatch
from questtrain.kernels.extension import constant_when_compiled
from questtrain.quant import QuantLinear, pack_linear
from tests.kernels.arguments import (
    ALPHA,
    COLUMNS,
    EPSILON,
    LEVELS,
    WIDTH,
    random_quantized,
    random_rows,
    random_weight,
)

ROWS = dispatch.MAX_PACKED_ROWS + 1
CPU = torch.device("cpu")


class Called(TorchDispatchMode):
    """The names of the ops of ours that are called."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "questtrain":
            self.ops.append(func._opname)
        return func(*args, **(kwargs or {}))


@constant_when_compiled
def everywhere(device):
    return True


@pytest.fixture
def int4(monkeypatch):
    """As on a GPU that multiplies 4-bit integers."""
    monkeypatch.setattr(dispatch, "has_int4", everywhere)


def linears(rows, width, columns, dtype, form, weight_levels=LEVELS):
    """The four forms, each a function of nothing."""
    x, residual = (random_rows(rows, width, dtype, seed=seed) for seed in (0, 1))
    norm, gate_up = torch.linspace(0.5, 1.5, width), torch.cat([x, residual], 1)
    weight = random_weight(columns, width, weight_levels)
    return (
        lambda: (kernels.hadamard_linear(x, form, weight),),
        lambda: (kernels.rmsnorm_linear(x, norm, EPSILON, form, weight),),
        lambda: kernels.add_rmsnorm_linear(x, residual, norm, EPSILON, form, weight),
        lambda: (kernels.swiglu_linear(gate_up, form, weight),),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "width", "columns", "block"),
    [(ROWS, 256, 32, 128), (300, 192, 24, 64), (ROWS, 64, 8, 1)],
)
def test_the_result_is_that_of_int8(rows, width, columns, block, dtype, monkeypatch):
    form = RowFormat(LEVELS, ALPHA, block)
    for linear in linears(rows, width, columns, dtype, form):
        expected = linear()
        with monkeypatch.context() as patched, Called() as called:
            patched.setattr(dispatch, "has_int4", everywhere)
            actual = linear()
        assert called.ops[-1] == "int4_linear"
        assert "unpack" not in called.ops
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize(
    ("rows", "width", "columns", "levels", "weight_levels"),
    [
        (ROWS - 1, 256, 32, 16, 16),
        (ROWS, 96, 32, 16, 16),
        (ROWS, 256, 32, 8, 16),
        (ROWS, 256, 32, 128, 16),
        (ROWS, 256, 32, 16, 8),
        (ROWS, 256, 32, 16, 2),
    ],
)
def test_other_products_go_their_ways(rows, width, columns, levels, weight_levels, int4):
    form = RowFormat(levels, ALPHA, 32)
    for linear in linears(rows, width, columns, torch.bfloat16, form, weight_levels):
        with Called() as called:
            linear()
        assert called.ops[-1] in ("packed_linear", "int8_linear")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), False),
        ((10, 0), False),
        ((12, 0), False),
    ],
)
def test_which_gpus_multiply_4_bit_integers(capability, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    weight = random_weight(COLUMNS, WIDTH, LEVELS)
    product = (ROWS, WIDTH, LEVELS, weight)
    assert dispatch.multiplies_int4(torch.device("cuda:1"), *product) == expected
    assert not dispatch.multiplies_int4(CPU, *product)


def test_a_layer_that_keeps_int8_values_multiplies_them(int4):
    packed = pack_linear(QuantLinear(WIDTH, COLUMNS, bits="w4a4"))
    x = torch.randn(ROWS, WIDTH)
    with Called() as called:
        y = packed(x)
    assert called.ops == ["hadamard_quantize", "int4_linear"]
    packed.weight.keep_int8()
    with Called() as called:
        assert torch.equal(packed(x), y)
    assert called.ops == ["hadamard_quantize", "int8_linear"]


def test_compiled_without_a_break(int4):
    """The GPU's capability is a constant, not a branch of the graph."""
    graphs = []

    def backend(module, _):
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    weight, form = random_weight(COLUMNS, WIDTH, LEVELS), RowFormat(LEVELS, ALPHA, 128)

    def run(x):
        return kernels.hadamard_linear(x, form, weight)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=backend)
    for rows in (ROWS, 300):
        x = random_rows(rows, WIDTH, torch.bfloat16)
        assert torch.equal(compiled(x), run(x))
    (graph,) = graphs
    assert "questtrain.int4_linear" in graph


def test_packed_activations_take_a_packed_weight_of_16_levels():
    x = random_quantized(ROWS, WIDTH, LEVELS, packed=True)
    eight = random_weight(COLUMNS, WIDTH, 8)
    dense = kernels.Int8Matrix(kernels.unpack(eight.codes, 8), eight.scales)
    for weight in (eight, dense):
        with pytest.raises(ValueError, match="packed weight of 16 levels"):
            kernels.quantized_linear(x, weight, torch.bfloat16)
