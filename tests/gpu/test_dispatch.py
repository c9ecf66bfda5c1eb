"""What runs on a GPU: packed codes on both sides, the library and the references."""

import os
import subprocess
import sys

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.kernels import RowFormat, dispatch, extension
from questtrain.kernels.formats import packed_integers
from tests.gpu.kernel_cases import assert_linear, assert_near, need_kernel, needs_kernels
from tests.kernels.arguments import ALPHA, EPSILON, LEVELS, random_rows, random_weight, reference_of

pytestmark = [pytest.mark.gpu, needs_kernels]


def quantizers(rows, width, dtype):
    """Each form's operands, its product and what quantizes it."""
    x, residual = (random_rows(rows, width, dtype, "cuda", seed) for seed in (0, 1))
    norm = torch.linspace(0.5, 1.5, width, device="cuda")
    gate_up = torch.cat([x, residual], 1)
    return {
        "hadamard": ((x,), kernels.hadamard_linear, kernels.hadamard_quantize),
        "rmsnorm": ((x, norm, EPSILON), kernels.rmsnorm_linear, kernels.rmsnorm_quantize),
        "add_rmsnorm": (
            (x, residual, norm, EPSILON),
            kernels.add_rmsnorm_linear,
            kernels.add_rmsnorm_quantize,
        ),
        "swiglu": ((gate_up,), kernels.swiglu_linear, kernels.swiglu_quantize),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["hadamard", "rmsnorm", "add_rmsnorm", "swiglu"])
def test_packed_codes_on_both_sides(name, dtype, monkeypatch):
    """Every GPU computes the product, though only some natively."""
    need_kernel("int4_linear", "int8_linear", "unpack")
    for rows, width, columns, block in ((65, 256, 32, 128), (300, 192, 24, 64)):
        operands, linear, quantize = quantizers(rows, width, dtype)[name]
        form, weight = (
            RowFormat(LEVELS, ALPHA, block),
            random_weight(columns, width, LEVELS, "cuda"),
        )
        with monkeypatch.context() as forced:
            forced.setattr(dispatch, "has_int4", lambda device: True)
            actual = linear(*operands, form, weight)
            fed = quantize(*operands, *form, packed=True)
        if name == "add_rmsnorm":
            assert torch.equal(actual[0], fed[0])
            actual, fed = actual[1], fed[1]
        integers = [packed_integers(codes, LEVELS) for codes in (fed.codes, weight.codes)]
        expected = reference_of("int8_linear")(
            integers[0], fed.scales, integers[1], weight.scales, dtype
        )
        assert_linear(actual, expected)
        with monkeypatch.context() as forced:
            forced.setattr(dispatch, "has_int4", lambda device: False)
            by_int8 = linear(*operands, form, weight)
        assert_near(actual, by_int8[1] if name == "add_rmsnorm" else by_int8, width)


def test_packed_codes_on_both_sides_compiled(monkeypatch):
    need_kernel("int4_linear")
    monkeypatch.setattr(dispatch, "has_int4", extension.constant_when_compiled(lambda device: True))
    weight, form = random_weight(32, 256, LEVELS, "cuda"), RowFormat(LEVELS, ALPHA, 128)

    def run(x):
        return kernels.hadamard_linear(x, form, weight)

    x = random_rows(70, 256, torch.bfloat16, "cuda")
    assert torch.equal(torch.compile(run, fullgraph=True)(x), run(x))


PROGRAM = """
import logging
import torch
import questtrain.kernels as kernels
from questtrain.kernels import extension

logging.basicConfig(format="%(message)s", level=logging.INFO)
assert extension._found is None
codes = torch.zeros(8, 32, dtype=torch.uint8, device="cuda")
for _ in range(2):
    assert kernels.unpack(codes, 16).eq(-15).all()
kernel = torch._C._dispatch_has_kernel_for_dispatch_key("questtrain::unpack", "CUDA")
print(kernel, extension.serves("cuda"))
"""


@pytest.mark.parametrize(
    ("backend", "library", "served", "said"),
    [
        ("auto", None, True, None),
        ("cuda", None, True, None),
        ("reference", None, False, "QUESTTRAIN_KERNELS_BACKEND=reference"),
        ("auto", "none.so", False, "make kernels"),
    ],
)
def test_a_fresh_process(backend, library, served, said):
    """The library comes with the first tensor on the GPU; where the references serve, the log says
    so once."""
    done = run(backend, library)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(served)] * 2
    assert done.stderr.count("the plain-torch references serve") == (said is not None)
    assert said is None or said in done.stderr


def test_a_fresh_process_that_wants_a_library_in_vain():
    done = run("cuda", "none.so")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "questtrain.errors.UserError: QUESTTRAIN_KERNELS_BACKEND=cuda: not built"
    )


def run(backend, library):
    environment = {**os.environ, extension.BACKEND_VARIABLE: backend}
    if library is not None:
        environment[extension.PATH_VARIABLE] = library
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
