"""What only a CUDA device can show: `make test-gpu`."""

import numpy as np
import pytest
import torch

from questtrain.cli.main import main
from questtrain.quant import QuantLinear
from questtrain.store.checkpoint import checkpoint_folders
from tests.gpu.kernel_cases import whatever_training_warns_of
from tests.training_data import TINY, questtrain, rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    *whatever_training_warns_of,
]

ON_GPU = (*(word for word in TINY if not word.startswith("device=")), "device=cuda")
RUN = (*ON_GPU, "max_steps=30", "log_every=1", "eval_every=10", "checkpoint_every=10")


@pytest.mark.parametrize(
    ("bits", "method"),
    [
        *((bits, "quest") for bits in ("w1a1", "w2a2", "w4a4", "w8a8", "w2a16", "w4a8")),
        *((bits, "quest") for bits in ("fp4", "w4s24a4", "wfp4a8")),
        *(("w4a4", method) for method in ("clip", "ste", "lsq", "lsq-plus", "pact")),
    ],
)
def test_layer_on_the_gpu_equals_the_cpu(bits, method):
    """Forward and gradients in fp32 agree with float64 on the CPU but for codes at ties."""
    torch.manual_seed(0)
    reference = QuantLinear(256, 128, bits=bits, method=method, dtype=torch.float64)
    layer = QuantLinear(256, 128, bits=bits, method=method, device="cuda")
    layer.weight.data.normal_()  # a few values lie outside every clipping range
    reference.weight.data.copy_(layer.weight.data)
    x = torch.randn(64, 256, dtype=torch.float32, device="cuda", requires_grad=True)
    x_reference = x.detach().double().cpu().requires_grad_()
    y, y_reference = layer(x), reference(x_reference)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    y_reference.backward(gradient.double().cpu())
    assert dict(layer.named_parameters()).keys() == dict(reference.named_parameters()).keys()
    gradients = zip(layer.parameters(), reference.parameters(), strict=True)
    for ours, exact in (
        (y, y_reference),
        (x.grad, x_reference.grad),
        *((ours.grad, exact.grad) for ours, exact in gradients),
    ):
        error = (ours.double().cpu() - exact).norm() / exact.norm()
        assert error < 2e-3, "one flipped code of 16,384 is about 1e-3"


@pytest.mark.parametrize(
    "settings", ["method=quest", "method=lsq-plus", "method=pact", "bits=fp4", "bits=w4s24a4"]
)
def test_compiled_training_equals_eager(settings, corpus, tmp_path):
    """The compiled loss curve follows the eager one within bf16's rounding; measuring diagnostics
    in between disturbs neither."""
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        words = [*RUN, *corpus, f"runs_dir={tmp_path}", f"name={name}", f"compile={compiled}"]
        assert main(["train", *words, settings, "train.diagnose_every=7"]) == 0
    eager, compiled = (
        np.array([value for _, value in rows(tmp_path / name, "train_loss")])
        for name in ("eager", "compiled")
    )
    np.testing.assert_allclose(compiled[:5], eager[:5], rtol=5e-3)
    np.testing.assert_allclose(compiled[-1], eager[-1], rtol=5e-2)
    assert compiled[-5:].mean() < compiled[:5].mean() - 0.2, "it learns"


def test_resumed_training_goes_on_where_it_stopped(corpus, tmp_path):
    """A run cut back to its second checkpoint ends where the unbroken one did."""
    words = ("train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "compile=false")
    assert questtrain(*words).returncode == 0
    run = tmp_path / "run"
    unbroken = rows(run, "val_loss")
    (run / "run.json").unlink()
    for file in checkpoint_folders(run)[-1].iterdir():
        file.unlink()
    result = questtrain(*words)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr
    resumed = rows(run, "val_loss")
    assert [step for step, _ in resumed] == [step for step, _ in unbroken]
    np.testing.assert_allclose(resumed[-1][1], unbroken[-1][1], rtol=1e-3)


def test_out_of_memory_says_what_to_lower(corpus, tmp_path, capsys):
    words = [*ON_GPU, *corpus, f"runs_dir={tmp_path}", "compile=false", "max_steps=1"]
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        assert main(["train", *words, "batch_size=16384", "micro_batch_size=16384"]) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "try micro_batch_size=8192" in capsys.readouterr().err


def test_the_record_of_a_gpu_run(corpus, tmp_path):
    assert main(["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "max_steps=3"]) == 0
    assert torch.cuda.get_device_name() in (tmp_path / "run" / "run.json").read_text()
