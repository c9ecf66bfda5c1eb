"""``format=hf`` in transformers itself: what it computes, generates, saves, and refuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from questtrain.cli.main import main
from questtrain.inference.export import write, written
from questtrain.inference.export.format import Options
from questtrain.inference.export.passages import PASSAGES, TEXTS
from questtrain.inference.export.source import Source
from questtrain.inference.generate import generate_tokens
from questtrain.inference.load import load_run
from questtrain.store.weight_files import WeightFiles
from tests.data import tokenizers
from tests.inference.export.conftest import MATRIX, answer_here

Trained = Callable[..., Path]
Exported = Callable[..., Path]

RUNS = [
    *((bits, method, {}) for bits, method in MATRIX),
    (
        "w4a16",
        "quest",
        {"quant.weight_rotation": "hadamard", "quant.activation_rotation": "hadamard"},
    ),
    ("w4a16", "lsq", {}),
    ("w4a4", "lsq-plus", {}),
    ("w8a8", "pact", {}),
    ("fp4", "quest", {}),
    ("w4s24a4", "quest", {"quant.scale_dtype": "float16"}),
    ("w16a4", "quest", {}),
    ("w3a4", "quest", {"quant.group_size": 32, "quant.skip": "[lm_head,layers.0.*]"}),
    ("w1.58a8", "quest", {"quant.grid": "int", "model.qkv_bias": "true"}),
    ("w4a4", "quest", {"model.qk_norm": "true", "model.num_kv_heads": 2, "model.head_dim": 32}),
]
"""Every kind of weight and of activation, and models of all three classes of transformers."""


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``exported("w4a4", …)``: the folder that `trained` of the same words is exported to, with a
    certificate, once a session."""
    made: dict[Path, Path] = {}

    def export(bits: str, method: str = "quest", **settings: object) -> Path:
        run = trained(bits, method, **settings)
        if run not in made:
            output = tmp_path_factory.mktemp("hf") / "model"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(written, "ask", answer_here)
                write.export(Source.open(run), "hf", output, Options())
            made[run] = output
        return made[run]

    return export


def loaded(folder: Path, **options: object) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    import questtrain.hf  # noqa: F401

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model


@pytest.mark.parametrize(("bits", "method", "settings"), RUNS)
def test_certified(
    trained: Trained, exported: Exported, bits: str, method: str, settings: dict[str, object]
) -> None:
    folder = exported(bits, method, **settings)
    source = Source.open(trained(bits, method, **settings))
    certificate = json.loads((folder / "certificate.json").read_text())
    found = certificate["comparison"]
    assert certificate["codes_different"] == 0
    assert certificate["weights"] == 2 * (4 * 256 * 256 + 3 * 256 * 768) or settings
    assert found["median_logit_difference"] < 1e-5
    plain = "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert plain == (not source.quantizes_activations) == bits.endswith(("a16", "bf16"))
    assert not plain or found["largest_logit_difference"] < 1e-4
    card = (folder / "README.md").read_text()
    assert ("import questtrain.hf" in card.split("```")[1]) == (not plain)
    assert f"| bits | {bits} |" in card
    assert f"{certificate['weights']:,}" in card


def test_a_run_with_a_sentencepiece_tokenizer(exported: Exported, tmp_path: Path) -> None:
    """Its certificate compares the ids of many texts."""
    texts = [*PASSAGES, Path(argparse.__file__).read_text(encoding="utf-8")[:20_000]]
    model = tokenizers.save(tokenizers.sentencepiece_model(texts), tmp_path / "tokenizer.model")
    folder = exported("w2a16", "quest", **{"data.tokenizer": model})
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["texts_compared"] == len(TEXTS)
    assert not (folder / "tokenizer.model").exists()  # transformers would read that instead


@pytest.mark.parametrize("bits", ["w2a16", "w4a4"])
def test_generates_the_same(trained: Trained, exported: Exported, bits: str) -> None:
    from transformers import AutoTokenizer

    run, folder = load_run(trained(bits), device="cpu"), exported(bits)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), loaded(folder)
    inputs = tokenizer("def parse(text, <s> ", return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    assert prompt == [run.tokenizer.bos_id, *run.tokenizer.encode("def parse(text, <s> ")]
    ours = list(generate_tokens(run, prompt, 32, 0.0, 1.0, 0))
    theirs = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0].tolist()
    assert theirs[: len(prompt)] == prompt
    new = theirs[len(prompt) :]
    assert (new[:-1] if len(new) < 32 else new) == ours


@pytest.mark.parametrize(
    ("bits", "method"), [("w4a4", "quest"), ("w4a4", "lsq-plus"), ("fp4", "quest")]
)
def test_saved_and_loaded_again(exported: Exported, tmp_path: Path, bits: str, method: str) -> None:
    """Bit for bit, on whatever device map; scales stay fp32 in a model of 16 bits."""
    model = loaded(exported(bits, method))
    tokens = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        logits = model(tokens).logits
        model.save_pretrained(tmp_path, max_shard_size="1MB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        for device_map in ("cpu", "auto"):
            again = loaded(tmp_path, device_map=device_map)
            assert torch.equal(again(tokens).logits, logits)
        state = model.state_dict()
        for half in (loaded(tmp_path, dtype=torch.bfloat16), again.to(torch.bfloat16)):
            for name, tensor in half.state_dict().items():
                if name.endswith((".scales", ".scale.value", ".offset.value")):
                    assert tensor.dtype == torch.float32
                    assert torch.equal(tensor, state[name]), name
            assert (half(tokens).logits - logits).abs().median() < 0.05


def test_it_holds_its_weights_packed(trained: Trained, exported: Exported) -> None:
    """Codes of 4 bits in 4: linears of a byte for two weights, and little else."""
    source, files = Source.open(trained("w4a4")), WeightFiles.of(exported("w4a4"))
    weights = sum(source.codes(name).codes.numel() for name in source.linear_names())
    size = sum((exported("w4a4") / name).stat().st_size for name in files.files)
    rest = sum(4 * source.tensor(name).numel() for name in source.tensor_names())
    assert size - rest < 0.55 * weights


def test_in_parts_and_16_bits(trained: Trained, exported: Exported, tmp_path: Path) -> None:
    """Shards are of the size that is asked for, and make the same model."""
    output = tmp_path / "parts"
    source = Source.open(trained("w4a4"))
    write.export(source, "hf", output, Options(shard_bytes=200_000), verify=False)
    assert len(list(output.glob("model-*.safetensors"))) > 3
    tokens = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        expected = loaded(exported("w4a4"))(tokens).logits
        assert torch.equal(loaded(output)(tokens).logits, expected)
        for dtype in ("f16", "bf16"):
            write.export(source, "hf", tmp_path / dtype, Options(dtype), verify=False)
            model = loaded(tmp_path / dtype)
            assert model.dtype == Options(dtype).torch_dtype
            assert (model(tokens).logits - expected).abs().median() < 0.05


UNKNOWING = """
import sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM
for kind in (AutoModelForCausalLM, LlamaForCausalLM):
    try:
        kind.from_pretrained(sys.argv[1])
    except RuntimeError as error:
        print("refused", error)
"""


def test_without_the_import_it_does_not_load(exported: Exported) -> None:
    """Not even with random weights under a warning."""
    command = [sys.executable, "-c", UNKNOWING, str(exported("w4a4"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("refused") == 2, done.stdout + done.stderr
    assert "MISMATCH" in done.stderr
    assert "questtrain" in done.stderr


def test_the_command_certifies_in_a_process_of_its_own(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    words = [f"run={trained('w4a4')}", "format=hf", f"output={output}"]
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    assert "transformers 5." in printed
    (output / "README.md").write_text("license: mit")  # whoever publishes it edits the card
    (output / "config.json").write_text((output / "config.json").read_text() + " ")
    assert main(["verify", str(output), f"run={trained('w4a4')}"]) == 2
    assert "config.json is not the file that was certified" in capsys.readouterr().err


def test_refused_where_no_class_of_transformers_computes_it(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("w4a16", "quest", **{"model.qk_norm": "true", "model.qkv_bias": "true"})
    assert main(["export", f"run={run}", "format=hf", f"output={tmp_path / 'model'}"]) == 2
    said = capsys.readouterr().err
    assert "no class of transformers has both" in said
    assert "format=packed holds it" in said
    assert not list(tmp_path.iterdir())


def test_a_newer_folder_is_refused(exported: Exported, tmp_path: Path) -> None:
    from questtrain.errors import UserError
    from questtrain.hf import QuestConfig

    given = json.loads((exported("w4a4") / "config.json").read_text())["quantization_config"]
    with pytest.raises(UserError, match="reads version 1"):
        QuestConfig.from_dict(given | {"version": 2})
