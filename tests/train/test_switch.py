"""switch_at: the first phase is the run of its bits, nothing is lost at the switch, and a run that
is resumed before, at or after it equals the unbroken one bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from questtrain.cli.main import main
from questtrain.inference import load_run
from questtrain.quant import QuantLinear, learned_scalars
from questtrain.store.checkpoint import checkpoint_folders
from tests.train.test_run import in_progress, same_run
from tests.training_data import TINY, questtrain, rows

STEPS, SWITCH = 12, 6
RUN = (
    *TINY, f"max_steps={STEPS}", "log_every=1", "eval_every=3", "checkpoint_every=3",
    "train.keep_checkpoints=9", "bits=w4a4",
)  # fmt: skip
KINDS = {
    "kernels": ("switch_at=0.5",),
    "micro-batches": ("switch_at=0.5", "switch_from=w8a8", "micro_batch_size=2"),
    "learned": ("switch_at=0.5", "method=lsq"),
    "learned twice": ("switch_at=0.5", "method=lsq-plus", "switch_from=w8a8"),
}


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> dict[str, Path]:
    """A run of each kind that was never stopped, and the first phase's alone."""
    runs = tmp_path_factory.mktemp("switch")
    for kind, words in {**KINDS, "alone": ("bits=bf16",)}.items():
        assert main(["train", *RUN, *corpus, *words, f"runs_dir={runs}", f"name={kind}"]) == 0
    return {kind: runs / kind for kind in (*KINDS, "alone")}


def part(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


@pytest.mark.parametrize("kind", ["kernels", "learned"])
def test_the_first_phase_is_a_run_of_its_bits(unbroken, kind):
    """Same losses up to the switch; there, weights and moments are those of the other run."""
    run, alone = unbroken[kind], unbroken["alone"]
    for key in ("train_loss", "grad_norm", "lr"):
        assert rows(run, key)[:SWITCH] == rows(alone, key)[:SWITCH]
        assert (rows(run, key)[SWITCH:] == rows(alone, key)[SWITCH:]) == (key == "lr")
    for name in ("model", "optimizer"):
        ours, theirs = part(run, SWITCH, name), part(alone, SWITCH, name)
        assert theirs.keys() <= ours.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_learned_scales_begin_at_the_switch(unbroken):
    """Also where the first phase had some, of another format, which AdamW's moments are of."""
    for kind in ("learned", "learned twice"):
        model = load_run(unbroken[kind], "cpu", step=SWITCH).model
        assert all(scalar.initialised for scalar in learned_scalars(model))
        moments = part(unbroken[kind], SWITCH, "optimizer")
        assert not any("scale" in key for key in moments), "no step was made with them"
        assert any("scale" in key for key in part(unbroken[kind], STEPS, "optimizer"))
    first = load_run(unbroken["learned twice"], "cpu", step=3).model
    assert len(learned_scalars(first)) > 0


def test_rows_say_of_which_bits_they_are(unbroken):
    """A training row those of its update, a validation row those of the model that goes on."""
    run = unbroken["kernels"]
    of_run, of_other = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, unbroken["alone"])
    )
    for row in of_run:
        quantized = row["step"] > SWITCH or (row["step"] == SWITCH and "val_loss" in row)
        assert row["bits"] == ("w4a4" if quantized else "bf16")
    assert not any("bits" in row for row in of_other)


@pytest.mark.parametrize("kept", [3, 6, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_before_at_and_after_the_switch(unbroken, corpus, tmp_path, kind, kept):
    run = tmp_path / kind
    shutil.copytree(unbroken[kind], run)
    (run / "run.json").unlink()
    for folder in checkpoint_folders(run)[kept // 3 :]:
        shutil.rmtree(folder)
    words = [*RUN, *corpus, *KINDS[kind], f"runs_dir={tmp_path}", f"name={kind}"]
    assert main(["train", *words]) == 0
    same_run(unbroken[kind], run)
    ours, theirs = (checkpoint_folders(one)[-1] for one in (run, unbroken[kind]))
    name = "optimizer.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_killed_in_between(unbroken, corpus, tmp_path):
    """kill -9 between the checkpoint before the switch and the one at it."""
    words = ("train", *RUN, *corpus, *KINDS["learned"], f"runs_dir={tmp_path}", "name=run")
    process = in_progress(words, tmp_path / "run", logged=4)
    process.kill()
    process.communicate()
    assert main([*words]) == 0
    same_run(unbroken["learned"], tmp_path / "run")


def test_two_processes_switch_together(unbroken, corpus, tmp_path):
    """The sum of two gradients does not depend on who makes them."""
    words = [*RUN, *corpus, *KINDS["micro-batches"], f"runs_dir={tmp_path}", "name=run", "gpus=2"]
    result = questtrain("train", *words)
    assert result.returncode == 0, result.stderr
    same_run(unbroken["micro-batches"], tmp_path / "run")


def test_a_checkpoint_loads_as_the_model_that_it_was(unbroken):
    for step, bits in ((3, "bf16"), (SWITCH, "w4a4"), (STEPS, "w4a4")):
        loaded = load_run(unbroken["kernels"], "cpu", step=step)
        assert (loaded.step, loaded.config.bits) == (step, bits)
        layer = loaded.model.layers[0].mlp.up_proj
        assert isinstance(layer, QuantLinear)
        assert (layer.weight[0].unique().numel() <= 16) == (bits == "w4a4")


def test_the_record_says_what_it_was(unbroken, capsys):
    record = json.loads((unbroken["learned twice"] / "run.json").read_text())
    assert (record["switch_at"], record["switch_from"], record["bits"]) == (0.5, "w8a8", "w4a4")
    assert json.loads((unbroken["alone"] / "run.json").read_text())["switch_at"] is None
    assert main(["runs", str(unbroken["learned"].parent), "--json"]) == 0
    labels = {row["name"]: row["precision"] for row in json.loads(capsys.readouterr().out)}
    assert labels == {
        "kernels": "4-bf16@0.5",
        "micro-batches": "4-w8a8@0.5",
        "learned": "4-lsq-bf16@0.5",
        "learned twice": "4-lsq-plus-w8a8@0.5",
        "alone": "16",
    }


def test_diagnoses_are_of_the_quantized_steps(unbroken, capsys):
    run = unbroken["kernels"]
    assert main(["diagnose", f"run={run}", "what=mask", "device=cpu"]) == 0
    points = json.loads((run / "diagnostics" / "mask.json").read_text())["points"]
    assert [point["step"] for point in points] == [6, 9, 12]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("switch_at=0",), "switch_at=0.0 must be positive and below 1"),
        (("switch_at=1.0",), "switch_at=1.0 must be positive and below 1"),
        (("switch_at=0.01",), "leaves none before the switch: choose 0.083 to 0.92"),
        (("switch_at=0.99",), "leaves none after the switch"),
        (("switch_at=0.5", "switch_from=w4a4"), "switch_from=w4a4 are the run's bits already"),
        (("switch_at=0.5", "switch_from=w4a9"), "switch_from: unknown bits 'w4a9'"),
        (("switch_from=bf16",), "switch_from=bf16 needs switch_at"),
        (("switch_at=0.5", "switch_from=w1a1", "quant.grid=int"), "quant.grid=int"),
    ],
)
def test_a_switch_that_cannot_be(corpus, tmp_path, capsys, words, message):
    assert main(["train", *RUN, *corpus, *words, f"runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
