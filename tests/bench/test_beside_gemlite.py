"""What benchmarks/beside_gemlite.py does before gemlite's kernels run, which takes a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from questtrain.bench.layer.bf16_block import Inputs
from questtrain.bench.layer.random_tensors import Format, normal

CPU = torch.device("cpu")
PATH = Path(__file__).parents[2] / "benchmarks" / "beside_gemlite.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("beside_gemlite", PATH)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def linears():
    """Weights, rows, and the exact products of a narrow block's four linears."""
    torch.manual_seed(0)
    weights = [normal(n, k, CPU, std=0.02) for n, k in ((96, 256), (32, 256), (64, 256), (32, 384))]
    inputs = Inputs(*(normal(40, k, CPU) for k in (256, 256, 384)), torch.ones(256))
    exact = [x.float() @ w.float().t() for x, w in zip(inputs.of_linears, weights, strict=True)]
    return weights, inputs, exact


def test_four_bit_groups_stand_for_the_weight(script):
    torch.manual_seed(0)
    weight = normal(256, 512, CPU, std=0.02)
    q, scales, zeros = script.four_bit_groups(weight)
    assert (q.dtype, scales.shape, zeros.shape) == (torch.uint8, (256, 4), (256, 4))
    assert (int(q.min()), int(q.max())) == (0, 15)
    groups = q.float().unflatten(1, (-1, 128)) - zeros.float()[..., None]
    values = (groups * scales.float()[..., None]).flatten(1)
    error = (values - weight.float()).norm() / weight.float().norm()
    assert error == pytest.approx(0.100, abs=0.005)  # 5.2/15/√12, as the script says


@pytest.mark.parametrize("levels", [16, 4, 2])
def test_the_right_products_pass_and_wrong_ones_do_not(script, linears, levels):
    weights, inputs, exact = linears
    ours = script.our_case(weights, Format(levels, levels), packed=True)
    assert 0 < ours.check("ours", inputs, exact) < ours.largest_error < 1
    calls = ours.calls(inputs)
    assert len(calls) >= 2
    calls[-1]()
    with pytest.raises(SystemExit, match="ours: relative errors"):
        ours.check("ours", inputs, [product.flip(1) for product in exact])
    with pytest.raises(SystemExit, match="relative errors"):
        script.bf16_case(weights).check("bf16", inputs, [p * torch.nan for p in exact])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "need a CUDA GPU"),
        (["--models", "80M"], "Did you mean '800M'?"),
        (["--bits", "w6a6"], "give 1 to 4 bits"),
        (["--tokens", "0"], "at least 1"),
    ],
)
def test_refusals(script, monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", [str(PATH), "out.json", *words])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
