"""Which products are the CPU's library's, and that they are the same as without it."""

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.kernels import RowFormat, cpu_library, dispatch
from questtrain.kernels.extension import constant_when_compiled
from questtrain.quant import QuantLinear, pack_linear
from tests.kernels.arguments import ALPHA, LEVELS, random_rows, random_weight
from tests.kernels.test_dispatch import Called


@constant_when_compiled
def always():
    return True


@constant_when_compiled
def never():
    return False


@pytest.mark.parametrize("rows", [1, 64, 65, 300])
def test_packed_products_of_any_number_of_rows(monkeypatch, rows):
    weight, form = random_weight(32, 256, LEVELS), RowFormat(LEVELS, ALPHA, 128)
    x = random_rows(rows, 256, torch.float32)
    results = []
    for serves, ops in (
        (always, ["packed_linear"]),
        (never, ["packed_linear"] if rows <= 64 else ["unpack", "int8_linear"]),
    ):
        monkeypatch.setattr(cpu_library, "serves", serves)
        with Called() as called:
            results.append(kernels.hadamard_linear(x, form, weight))
        assert called.ops == ["hadamard_quantize", *ops]
    assert torch.equal(*results)


@pytest.mark.parametrize("columns", [24, 32])
def test_packed_codes_that_it_does_not_take_are_unpacked(monkeypatch, columns):
    monkeypatch.setattr(cpu_library, "serves", always)
    weight, form = random_weight(columns, 96, LEVELS), RowFormat(LEVELS, ALPHA, 32)
    with Called() as called:
        kernels.hadamard_linear(random_rows(3, 96, torch.float32), form, weight)
    assert called.ops == ["hadamard_quantize", "unpack", "int8_linear"]


FLOAT_PRODUCTS = [
    ("w4a16", "quest", 256, True),
    ("w2a16", "quest", 256, True),
    ("w1a16", "quest-noht", 256, True),
    ("w1.58a16", "quest", 256, True),
    ("w4a4", "lsq", 256, True),
    ("w4a16", "quest", 96, True),
    ("w4a16", "quest", 48, False),
    ("w5a16", "quest", 256, False),
    ("w4s24a16", "quest", 256, False),
    ("fp4", "quest", 256, False),
]


@pytest.mark.parametrize(("bits", "method", "width", "taken"), FLOAT_PRODUCTS)
def test_which_float_activations_multiply_packed_codes(monkeypatch, bits, method, width, taken):
    """The same outputs either way, within the rounding of other sums."""
    packed = pack_linear(QuantLinear(width, 48, bias=True, bits=bits, method=method))
    x = torch.randn(2, 5, width)
    results = []
    for serves, expected in ((never, []), (always, ["packed_weight_linear"] if taken else [])):
        monkeypatch.setattr(cpu_library, "serves", serves)
        with Called() as called, torch.no_grad():
            results.append(packed(x))
        assert [op for op in called.ops if op == "packed_weight_linear"] == expected
    assert packed.multiplies_as_stored(x.dtype) == taken
    assert results[0].shape == (2, 5, 48)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_a_gradient_is_taken_through_the_values(monkeypatch):
    monkeypatch.setattr(cpu_library, "serves", always)
    packed = pack_linear(QuantLinear(128, 16, bits="w4a16"))
    x = torch.randn(3, 128, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not dispatch.multiplies_packed_floats(x.double(), 16, 16, 1)


def test_float_products_compile_whole(monkeypatch):
    monkeypatch.setattr(cpu_library, "serves", always)
    packed = pack_linear(QuantLinear(128, 16, bits="w4a16"))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 128)
    with torch.no_grad():
        assert torch.equal(compiled(x), packed(x))
