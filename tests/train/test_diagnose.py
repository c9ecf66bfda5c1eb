"""Diagnostics: what they compute where the answer is known, and the command on a real run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from questtrain.cli.main import main
from questtrain.config import ModelConfig, QuantConfig
from questtrain.errors import UserError
from questtrain.model import Llama
from questtrain.quant import Quantizer
from questtrain.quant.method import method_config
from questtrain.train.diagnose import diagnose
from questtrain.train.diagnostics import (
    expected_masked_fraction,
    gradient_alignment,
    masked_fraction,
    without_activation_quantization,
)
from questtrain.train.evaluate import loss_function
from tests.training_data import TINY, rows

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(0))


def llama(bits: str, quant: QuantConfig | None = None, hidden: int = 128) -> Llama:
    model = Llama(ModelConfig("tiny", 1, 3, hidden, 2, vocab_size=64), bits, quant or QuantConfig())
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def alignment(model: Llama) -> list[float]:
    return gradient_alignment(model, loss_function(model, CPU, "none"), TOKENS)


def test_many_bits_align_and_few_do_not():
    """One value a block; 8 bits hardly turn the gradient, 1 bit does, and less so at the top."""
    fine, coarse = alignment(llama("w8a8")), alignment(llama("w8a1"))
    assert len(fine) == len(coarse) == 3
    assert min(fine) > 0.99
    assert coarse[0] < min(fine)
    assert all(-1 <= value <= 1 for value in fine + coarse)


def test_the_reference_is_the_model_without_activation_quantization():
    """Inside, the model computes what one with the same weights and 16-bit activations does, in
    either space of the product; afterwards it is as before."""
    for rotations in ({}, {"weight_rotation": "hadamard-back", "activation_rotation": "none"}):
        model = llama("w4a4", QuantConfig(**rotations))
        reference = llama("w4a16")
        before = model(TOKENS[:, :-1])
        with without_activation_quantization(model):
            inside = model(TOKENS[:, :-1])
        torch.testing.assert_close(inside, reference(TOKENS[:, :-1]), rtol=1e-4, atol=1e-5)
        assert torch.equal(model(TOKENS[:, :-1]), before)
        assert not torch.allclose(inside, before, rtol=1e-3)


def test_diagnosing_leaves_no_gradient():
    """Parameters keep what training accumulated in them."""
    model = llama("w4a4")
    alignment(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("bits", "method", "t_alpha"),
    [
        ("w4a4", "quest", 16 / 15 * 2.513931),
        ("w1a1", "quest", 1.30 * 0.797885),
        ("w1a1", "quest-noht", 1.25 * 0.797885),
        ("w2a2", "clip", 1.493535),
        ("w8a8", "quest", 256 / 255 * 3.884939),
        ("w3a3", "pact", 2.051068),
        ("w4a4", "ste", math.inf),
    ],
)
def test_the_theoretical_line_is_the_gaussian_tail(bits: str, method: str, t_alpha: float):
    """P(|z| > t·α) for z ~ N(0, 1), and a fresh model's weights, which are Gaussian, lie there
    (with rows of 512 values: short rows have lighter tails in units of their own rms)."""
    model = llama(bits, method_config(method), hidden=512)
    expected = math.erfc(t_alpha / math.sqrt(2))
    assert expected_masked_fraction(model) == pytest.approx(expected, rel=5e-3, abs=1e-9)
    assert masked_fraction(model) == pytest.approx(expected, rel=0.1, abs=1e-9)


def test_the_theoretical_line_of_sparse_weights_counts_pruned_ones():
    """Half of the values are pruned; of those, the ones over T are masked too."""
    model = llama("w4s24a4", hidden=512)
    dense = masked_fraction(llama("w4a4", hidden=512))
    assert 0.3 < masked_fraction(model) < 0.5
    assert masked_fraction(model) > dense + 0.3
    assert expected_masked_fraction(model) == pytest.approx(masked_fraction(model), rel=0.02)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    """A finished W2A2 run with four checkpoints that logged its own diagnostics."""
    runs = tmp_path_factory.mktemp("runs")
    words = [*TINY, *corpus, "bits=w2a2", "max_steps=12", "log_every=1", "checkpoint_every=3"]
    words += ["train.keep_checkpoints=9", "train.diagnose_every=6", f"runs_dir={runs}", "name=run"]
    assert main(["train", *words]) == 0
    return runs / "run"


def test_masks_of_the_checkpoints_are_those_that_training_logged(run):
    """The command measures at step 0 and every checkpoint; the run's own rows agree with it."""
    path, record = diagnose(run, "mask")
    assert json.loads(path.read_text()) == record
    assert [point["step"] for point in record["points"]] == [0, 3, 6, 9, 12]
    measured = {point["step"]: point["fraction"] for point in record["points"]}
    logged = dict(rows(run, "weight_masked_fraction"))
    assert logged == {step: measured[step] for step in (6, 12)}
    assert dict(rows(run, "expected_masked_fraction"))[6] == record["expected"]
    assert measured[0] != measured[12]


def test_step_zero_is_the_model_before_training(run, corpus, tmp_path):
    """The initial weights follow from the seed: their mask is that of a run that never moved."""
    _, record = diagnose(run, "mask")
    words = [*TINY, *corpus, "bits=w2a2", "max_steps=1", "lr=1e-30", "optim.weight_decay=0"]
    assert main(["train", *words, f"runs_dir={tmp_path}", "name=still"]) == 0
    _, still = diagnose(tmp_path / "still", "mask")
    assert [point["fraction"] for point in still["points"]] == [record["points"][0]["fraction"]] * 2


def test_persistence_counts_what_stays(run):
    """The matrix equals one counted from the weights' masks by themselves."""
    from questtrain.train.diagnose import DiagnosedRun

    _, record = diagnose(run, "persistence")
    steps = record["steps"]
    diagnosed = DiagnosedRun(run, CPU)
    masks = []
    for step in steps:
        quantized = [
            (m.weight, m.weight_quantizer)
            for m in diagnosed.model(step).modules()
            if isinstance(getattr(m, "weight_quantizer", None), Quantizer)
        ]
        masks.append(np.concatenate([(~q.mask(w)).numpy().ravel() for w, q in quantized]))
    assert record["masked"] == [int(mask.sum()) for mask in masks]
    for old in range(len(steps)):
        for new in range(len(steps)):
            share = record["retained"][old][new]
            if new <= old:
                assert share is None
            else:
                assert share == (masks[old] & masks[new]).sum() / masks[old].sum()


def test_alignment_of_a_checkpoint(run):
    """Mean and deviation over validation batches for each block, newest checkpoint by default."""
    _, newest = diagnose(run, "alignment", batches=2)
    assert (newest["step"], newest["batches"]) == (12, 2)
    (block,) = newest["blocks"]
    assert block["block"] == 0
    assert 0.2 < block["mean"] <= 1
    assert block["std"] >= 0
    _, older = diagnose(run, "alignment", batches=2, step=6)
    assert older["blocks"] != newest["blocks"]
    assert older["blocks"][0]["mean"] != newest["blocks"][0]["mean"]


def test_the_chain_from_run_to_picture(run, tmp_path, capsys):
    """diagnose, then plot, by the commands."""
    for what in ("alignment", "mask", "persistence"):
        words = [f"run={run}", f"what={what}", "device=cpu"]
        assert main(["diagnose", *words]) == 0
        assert main(["diagnose", *words, "--json"]) == 0
        picture = tmp_path / f"{what}.png"
        assert main(["plot", what, str(run), "-o", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "questtrain plot persistence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["what=mask"], "run is not set"),
        (["run=RUN", "what=masks"], "Did you mean 'mask'?"),
        (["run=RUN", "what=alignment", "batches=0"], "batches=0"),
        (["run=RUN", "what=alignment", "step=5"], "no checkpoint of step 5"),
        (["run=RUN/checkpoints", "what=mask"], "is not a run"),
    ],
)
def test_bad_words_are_answered(run, words, message, capsys):
    """One message, exit code 2."""
    assert main(["diagnose", *(word.replace("RUN", str(run)) for word in words)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bits", "what", "message"),
    [
        ("bf16", "mask", "BF16"),
        ("w16a4", "mask", "weights of this run are not quantized"),
        ("w4a16", "alignment", "activations of this run are not quantized"),
        ("w4a4", "persistence", "keeps one checkpoint"),
    ],
)
def test_what_a_run_cannot_answer(bits, what, message, corpus, tmp_path):
    """A diagnosis that the format leaves without meaning says so."""
    words = [*TINY, *corpus, f"bits={bits}", "max_steps=1", f"runs_dir={tmp_path}", "name=run"]
    assert main(["train", *words]) == 0
    with pytest.raises(UserError, match=message):
        diagnose(tmp_path / "run", what)


def test_data_that_is_gone_names_the_config_that_it_stands_in(run, tmp_path):
    """The command has no settings of data: the run's are meant."""
    gone = shutil.copytree(run, tmp_path / "run")
    config = (gone / "config.yaml").read_text()
    (gone / "config.yaml").write_text(config.replace("/*.txt", "/*.gone"))
    with pytest.raises(UserError, match=r"as .*config\.yaml names it: data\.files: no file"):
        diagnose(gone, "alignment")
