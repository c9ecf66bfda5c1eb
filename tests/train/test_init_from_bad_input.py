"""init_from: what cannot be started from is one message that names it, exit code 2, and no run
folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from questtrain.cli.main import main
from questtrain.config import ModelConfig, QuantConfig
from questtrain.model import Llama
from questtrain.model.huggingface import hf_config, hf_names
from tests.train.test_init_from import RUN, without

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def good(corpus, tmp_path_factory) -> Path:
    """A folder as Hugging Face's, with the corpus' tokenizer, that can be started from."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    folder.mkdir()
    config = ModelConfig("x", 1, 2, 64, 4, 128, 512)
    model = Llama(config, "bf16", QuantConfig())
    model.init_weights(torch.Generator().manual_seed(0))
    names, weights = hf_names(config), model.state_dict()
    save_file({names[ours]: weights[ours] for ours in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(config, 64)))
    (source,) = (word.partition("=")[2] for word in corpus if word.startswith("data.tokenizer="))
    shutil.copy(source, folder / "tokenizer.json")
    return folder


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """A change of the tensors in the file."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return changed


def config(**values: object) -> Change:
    """A change of config.json."""

    def changed(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **values}))

    return changed


def text(name: str, content: str) -> Change:
    def changed(folder: Path) -> None:
        (folder / name).write_text(content)

    return changed


def sharded(weight_map: dict[str, str]) -> Change:
    def changed(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)

    return changed


def damaged_index(folder: Path) -> None:
    sharded({})(folder)
    (folder / "model.safetensors.index.json").write_text("{")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def exported(folder: Path) -> None:
    config(quantization={"group_size": 64, "bits": 4})(folder)
    (folder / "certificate.json").touch()


def other_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = "e", "t"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))


UP = "model.layers.1.mlp.up_proj.weight"
SHARD = "model-00001-of-00001.safetensors"
CHANGES: dict[str, tuple[Change, str]] = {
    "gone": (shutil.rmtree, "there is no such folder"),
    "empty": (emptied, "there is nothing to start from. It can be a run's folder"),
    "no llama": (config(model_type="gpt2"), "model_type='gpt2' is no model of the Llama family"),
    "quantized": (config(quantization_config={"bits": 4}), "quantization_config"),
    "our layers": (config(quantization_config={"quant_method": "questtrain", "bits": "w4a4"}),
                   "is an export of quantized weights: give the run that it was made of"),
    "exported": (exported, "or an export of that run with format=packed"),
    "no configuration": (text("config.json", "[]"), "config.json holds no configuration"),
    "no JSON": (text("config.json", "{"), "config.json cannot be read"),
    "other depth": (config(num_hidden_layers=3),
                    "lacks the weight model.layers.2.self_attn.k_proj.weight and 8 more"),
    "surplus": (config(num_hidden_layers=1), "is no weight of this model"),
    "other width": (config(intermediate_size=256), "is 64 × 128, and of this model 64 × 256"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(),
                   "holds neither model.safetensors nor model.safetensors.index.json."),
    "pickled": (pickled, "but pytorch_model.bin: convert it to safetensors first"),
    "missing": (weights(lambda w: w.pop(UP)), f"lacks the weight {UP}"),
    "more": (weights(lambda w: w.update({"model.bias": torch.zeros(3)})),
             "model.bias is no weight of this model"),
    "NaN": (weights(lambda w: w[UP].fill_(torch.nan)), f"{UP} holds NaN"),
    "integers": (weights(lambda w: w.update({UP: w[UP].to(torch.int8)})), "is stored as I8"),
    "cut": (cut, "model.safetensors is damaged or no safetensors file"),
    "shard gone": (sharded({UP: "model-00002-of-00002.safetensors"}),
                   "lists 'model-00002-of-00002.safetensors', and there is no such file"),
    "outside": (sharded({UP: "../x.safetensors"}), "lists '../x.safetensors'"),
    "index lies": (sharded({"model.x": SHARD}), f"{SHARD} lacks model.x"),
    "index damaged": (damaged_index, "model.safetensors.index.json is damaged"),
    "ids that differ": (other_tokenizer, "'e' is id"),
    "few rows": (config(vocab_size=500), "knows 500 tokens, and the data's tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_folder_that_cannot_be_started_from(
    good, corpus, tmp_path, capsys, change, message
) -> None:
    folder = tmp_path / "given"
    shutil.copytree(good, folder)
    change(folder)
    refused(corpus, tmp_path, capsys, folder, message)


def refused(corpus, tmp_path, capsys, folder, message, *words) -> None:
    runs = tmp_path / "runs"
    given = [f"init_from={folder}", f"runs_dir={runs}", "name=run", *words]
    assert main(["train", *RUN, *corpus, *given]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=nano",), "model.num_layers=4 is asked for, and init_from="),
        (("model.hidden_size=128",), "model.hidden_size=128 is asked for"),
        (("model.rope_theta=5e5",), "model.rope_theta=500000.0 is asked for"),
        (("model.vocab_size=600",), "model.vocab_size=600 is asked for"),
    ],
)
def test_words_that_contradict_the_folder(good, corpus, tmp_path, capsys, words, message):
    refused(corpus, tmp_path, capsys, good, message, *words)


def test_a_run_without_checkpoints(corpus, tmp_path, capsys):
    """Its folder has a configuration and no weights yet."""
    words = [*RUN, *corpus, "model=nano", f"runs_dir={tmp_path / 'others'}", "name=other"]
    assert main(["train", *words]) == 0
    run = tmp_path / "others" / "other"
    shutil.rmtree(run / "checkpoints")
    refused(corpus, tmp_path, capsys, run, "holds no checkpoint yet")


def test_a_folder_without_a_tokenizer_needs_one(good, corpus, tmp_path, capsys):
    folder = tmp_path / "given"
    shutil.copytree(good, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    corpus = without(corpus, "data.tokenizer")
    refused(corpus, tmp_path, capsys, folder, "give data.tokenizer=…")


def test_a_head_that_is_said_to_be_tied_and_is_not(good, corpus, tmp_path, capsys):
    folder = tmp_path / "given"
    shutil.copytree(good, folder)
    config(tie_word_embeddings=True)(folder)
    refused(corpus, tmp_path, capsys, folder, "the head and the embedding differ")


def test_longer_sequences_than_it_was_made_for_are_said(good, corpus, tmp_path, caplog):
    words = [f"init_from={good}", f"runs_dir={tmp_path}", "name=run", "max_steps=1"]
    assert main(["train", *RUN, *corpus, *words, "sequence_length=128"]) == 0
    assert "beyond the 64 positions" in caplog.text
