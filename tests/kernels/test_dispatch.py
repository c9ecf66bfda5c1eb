"""Which product runs: packed codes on both sides, 256 levels on either; nothing changes but the
way."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import questtrain.kernels as kernels
from questtrain.kernels import RowFormat, dispatch
from questtrain.kernels.extension import constant_when_compiled
from questtrain.kernels.formats import Int8Matrix, integers_of
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
    assert "questtrain.int4_linear.default" in graph


def test_packed_activations_take_a_packed_weight_of_16_levels():
    x = random_quantized(ROWS, WIDTH, LEVELS, packed=True)
    eight = random_weight(COLUMNS, WIDTH, 8)
    dense = kernels.Int8Matrix(kernels.unpack(eight.codes, 8), eight.scales)
    for weight in (eight, dense):
        with pytest.raises(RuntimeError, match="packed weight of 16 levels"):
            kernels.quantized_linear(x, weight, torch.bfloat16)


# ---- 256 levels


def eight_bit_weight(levels, form):
    """Packed, int8, or None where levels cannot be packed."""
    if form == "packed":
        return random_weight(COLUMNS, WIDTH, levels) if levels <= LEVELS else None
    return Int8Matrix(*random_quantized(COLUMNS, WIDTH, levels, seed=1)[:3], levels)


@pytest.mark.parametrize("rows", [1, 64, ROWS])
@pytest.mark.parametrize("form", ["packed", "int8"])
@pytest.mark.parametrize("levels", [(256, 256), (256, 16), (256, 2), (16, 256), (128, 256)])
def test_256_levels_on_either_side(levels, form, rows, int4):
    weight = eight_bit_weight(levels[1], form)
    if weight is None:
        return
    x = random_rows(rows, WIDTH, torch.float32)
    with Called() as called:
        y = kernels.hadamard_linear(x, RowFormat(levels[0], ALPHA, 128), weight)
    unpacked = ["unpack"] if form == "packed" else []
    assert called.ops == ["hadamard_quantize", *unpacked, "int8_offset_linear"]
    fed = kernels.hadamard_quantize(x, levels[0], ALPHA)
    codes = kernels.unpack(weight.codes, levels[1]) if form == "packed" else weight.codes
    integers = integers_of(fed.codes, levels[0]), integers_of(codes, levels[1])
    exact = integers[0].double() @ integers[1].double().t()
    scales = fed.scales.double()[:, None] * weight.scales.double()
    assert torch.equal(y, (exact * scales).float())


def test_256_levels_are_not_quantized_on_the_way(monkeypatch):
    monkeypatch.setattr("questtrain.kernels.dispatch.quantizes_on_the_way", lambda *_: True)
    for linear in linears(1, WIDTH, COLUMNS, torch.bfloat16, RowFormat(256, ALPHA, 128)):
        with Called() as called:
            linear()
        assert called.ops[-1] == "int8_offset_linear"


def test_256_levels_need_the_sums_of_the_weight():
    x = random_quantized(ROWS, WIDTH, 256)
    weight = Int8Matrix(*random_quantized(COLUMNS, WIDTH, 16)[:2])
    with pytest.raises(RuntimeError, match="need the sums"):
        kernels.quantized_linear(x, weight, torch.bfloat16, 256)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a4"])
def test_256_levels_compiled_without_a_break(bits):
    packed = pack_linear(QuantLinear(WIDTH, COLUMNS, bits=bits))
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, ROWS):
        x = torch.randn(rows, WIDTH)
        assert torch.equal(compiled(x), packed(x))
