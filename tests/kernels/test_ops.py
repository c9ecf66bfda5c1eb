"""Every op: what torch asks of it, what tracing sees, and what it refuses."""

import re

import pytest
import torch
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

import questtrain.kernels as kernels
from questtrain.kernels.library import OPS
from tests.kernels.arguments import (
    COLUMNS,
    EPSILON,
    LEVELS,
    QUANTIZERS,
    WIDTH,
    arguments,
    random_rows,
    random_weight,
    reference_of,
)
from tests.kernels.refusals import named, wrong_numbers, wrong_tensors


def op_of(name):
    return getattr(torch.ops.questtrain, name)


def tensors(result):
    if result is None:
        return ()
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def on_meta(value):
    """The same strides too."""

    def empty(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    return tree_map_only(torch.Tensor, empty, value)


def fake_call(name, by_name):
    return op_of(name)(**{key: on_meta(value) for key, value in by_name.items()})


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    for rows in (1, 3):
        opcheck(op_of(name), arguments(name, rows=rows))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_opcheck_of_the_other_forms_of_quantizers(name, dtype):
    opcheck(op_of(name), arguments(name, dtype=dtype, packed=True, trust=None))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_tracing_sees_the_same_shapes_dtypes_and_layouts(name, rows):
    operands = arguments(name, rows=rows)
    results = tensors(op_of(name)(*operands))
    fakes = tensors(op_of(name)(*map(on_meta, operands)))
    for result, fake in zip(results, fakes, strict=True):
        assert (result.shape, result.dtype) == (fake.shape, fake.dtype)
        assert result.is_contiguous()
        assert fake.is_contiguous()


def chain(weight, norm):
    """All kinds of ops, one after the other, as a model has them."""

    def linear(x):
        return kernels.quantized_linear(x, weight, torch.bfloat16)

    def run(x, residual):
        hidden, x = kernels.add_rmsnorm_quantize(x, residual, norm, EPSILON, 16, 2.5, trust=1.1)
        x = linear(kernels.rmsnorm_quantize(linear(x), norm, EPSILON, 16, 2.5))
        x = linear(kernels.swiglu_quantize(torch.cat([x, hidden], 1), 16, 2.5))
        return hidden + linear(kernels.hadamard_quantize(x, 16, 2.5))

    return run


@pytest.mark.parametrize("dense", [False, True])
def test_compiled_without_a_break(dense):
    weight = random_weight(WIDTH, WIDTH, LEVELS)
    if dense:
        weight = kernels.Int8Matrix(kernels.unpack(weight.codes, LEVELS), weight.scales)
    run = chain(weight, torch.ones(WIDTH))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for rows in (5, 70):
        x, residual = (random_rows(rows, WIDTH, torch.bfloat16, seed=seed) for seed in (0, 1))
        assert torch.equal(compiled(x, residual), run(x, residual))


def test_one_graph_serves_all_numbers_of_rows():
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    def quantize(x):
        return kernels.hadamard_quantize(x, 16, 2.5)

    compiled = torch.compile(quantize, fullgraph=True, dynamic=True, backend=backend)
    for rows in (3, 17, 300):
        assert compiled(random_rows(rows, WIDTH, torch.bfloat16)).codes.shape == (rows, WIDTH)
    assert len(graphs) == 1


# ---- refusals


@pytest.mark.parametrize("name", OPS)
def test_a_wrong_argument_is_refused_by_name(name):
    """On the CPU and in tracing alike."""
    for wrong, words in (*wrong_tensors(name), *wrong_numbers(name)):
        with pytest.raises(RuntimeError, match=words):
            reference_of(name)(**wrong)
        if not re.search(r"\bmeta\b", words):
            with pytest.raises(RuntimeError, match=words):
                fake_call(name, wrong)


@pytest.mark.parametrize("argument", ["weights", "grads", "means", "squares", "steps"])
def test_lists_that_do_not_go_together_are_refused(argument):
    """On the CPU and in tracing alike."""
    good = named("adamw_")
    first, second = good[argument]
    for wrong, message in (
        ([first, second.double()], f"{argument} must be float32, not torch.float64"),
        ([first, second.unsqueeze(0)], r"\w+ must be "),
        ([first], "[12] weights need as many of everything, not [12]"),
    ):
        for refuses in (lambda a: op_of("adamw_")(**a), lambda a: fake_call("adamw_", a)):
            with pytest.raises(RuntimeError, match=f"^adamw_: {message}"):
                refuses({**good, argument: wrong})
    with pytest.raises(RuntimeError, match=f"^adamw_: {argument} must be on cpu, not meta"):
        op_of("adamw_")(**{**good, argument: [first, second.to("meta")]})


def test_only_fp32_weights_are_updated():
    good = named("adamw_")
    with pytest.raises(RuntimeError, match=r"^adamw_: weights must be float32, not torch.bfloat16"):
        op_of("adamw_")(**{**good, "weights": [weight.bfloat16() for weight in good["weights"]]})


@pytest.mark.parametrize(("width", "block"), [(48, 16), (96, 64), (128, 256), (0, 1)])
def test_a_width_that_cannot_be_divided_is_refused(width, block):
    message = f"the width {width} must be a multiple of 32 and of the block {block}"
    with pytest.raises(RuntimeError, match=f"^hadamard_quantize: {message}"):
        reference_of("hadamard_quantize")(torch.ones(2, width), 16, 2.5, block, False)


def test_an_odd_gate_up_is_refused():
    with pytest.raises(RuntimeError, match=r"swiglu_quantize: gate_up must be \[rows, 2·width\]"):
        reference_of("swiglu_quantize")(torch.ones(2, 129), 16, 2.5, 128, False)


def test_codes_that_the_kernel_cannot_divide_are_not_dequantized():
    codes = torch.ones(2, 48, dtype=torch.int8)
    message = "the width 48 must be a multiple of 32"
    with pytest.raises(RuntimeError, match=f"^dequantize: {message}"):
        reference_of("dequantize")(codes, torch.ones(2), 16, torch.float32)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("int8_linear", (4, WIDTH - 8), f"the width {WIDTH - 8} must be a multiple of 16"),
        ("int8_linear", (COLUMNS - 1, WIDTH), "the weight's rows 31 must be a multiple of 8"),
        ("packed_linear", (COLUMNS - 1, WIDTH), "the weight's rows 31 must be a multiple of 16"),
        ("int4_linear", (COLUMNS - 1, WIDTH), "the weight's rows 31 must be a multiple of 8"),
        ("int4_sparse_linear", (COLUMNS - 1, WIDTH), "the weight's rows 31 must be a multiple"),
    ],
)
def test_sizes_that_the_kernels_cannot_divide_are_refused(name, size, message):
    columns, width = size
    good = named(name)
    of_weight = ("weight", "weight_scales", "weight_sums", "metadata")
    wrong = {key: value[:columns] if key in of_weight else value for key, value in good.items()}
    if width != WIDTH:
        wrong["x"] = good["x"][:, :width].contiguous()
        wrong["weight"] = good["weight"][:, :width].contiguous()
    with pytest.raises(RuntimeError, match=f"^{name}: {re.escape(message)}"):
        reference_of(name)(**wrong)


def test_a_packed_weight_of_another_width_is_refused():
    good = named("packed_linear")
    message = r"^packed_linear: weight must be \['any', 64\], not \[32, 128\]"
    with pytest.raises(RuntimeError, match=message):
        reference_of("packed_linear")(**{**good, "levels": 4})
