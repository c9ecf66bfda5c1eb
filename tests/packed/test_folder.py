"""Packed folders that are damaged, foreign or newer: one message, exit code 2, no traceback."""

import json
import shutil

import pytest

from questtrain.cli.main import main
from questtrain.inference.export.format import Options
from questtrain.inference.export.source import Source
from questtrain.inference.export.write import export
from questtrain.packed.folder import MANIFEST
from questtrain.packed.manifest import Manifest, read_manifest
from tests.training_data import TINY


@pytest.fixture(scope="module")
def exported(corpus, tmp_path_factory):
    """An export of a run of the straight-through estimator, whose trust is infinite."""
    place = tmp_path_factory.mktemp("packed")
    words = [*TINY, *corpus, "method=ste", "max_steps=2", f"runs_dir={place}", "name=run"]
    assert main(["train", *words]) == 0
    export(Source.open(place / "run"), "packed", place / "export", Options(), verify=False)
    return place / "export"


@pytest.fixture
def folder(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "export")
    return tmp_path / "export"


def message(folder, capsys):
    assert main(["generate", f"run={folder}", "prompt=x", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def edit(folder, **changes):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))
    return content


def test_the_config_comes_back_with_its_infinity(exported):
    config = read_manifest(exported).train_config(exported)
    assert config == Source.open(exported.parent / "run").config
    assert config.quant.trust_scale == float("inf")


def test_a_newer_version(folder, capsys):
    edit(folder, version=2, questtrain_version="9.0.0", codes="in another way")
    assert "written by questtrain 9.0.0, in version 2" in message(folder, capsys)


def test_keys_of_later_exports_of_this_version_are_passed_over(folder):
    edit(folder, note="one more")
    assert isinstance(read_manifest(folder), Manifest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "is of format 'other'"),
        ({"version": "1"}, "'version' holds"),
        ({"dtype": "f8"}, "'dtype' holds 'f8'"),
        ({"step": -1}, "'step' holds -1"),
        ({"config": {}}, "is not set"),
    ],
)
def test_a_manifest_that_cannot_be(changes, words, folder, capsys):
    edit(folder, **changes)
    assert words in message(folder, capsys)


def test_a_manifest_that_is_no_json(folder, capsys):
    (folder / MANIFEST).write_text("{")
    assert "cannot be read as JSON" in message(folder, capsys)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damaged_and_missing_files(name, folder, capsys):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"{name} does not match its checksum" in message(folder, capsys)
    file.unlink()
    assert f"{name} is missing" in message(folder, capsys)


def test_a_config_of_another_model(folder, capsys):
    """Its checksum is not held; the tensors' shapes are."""
    config = edit(folder)["config"]
    config["model"]["intermediate_size"] = 64
    edit(folder, config=config)
    assert "is damaged: layers.0.mlp." in message(folder, capsys)
    config["model"]["num_layers"] = 2
    edit(folder, config=config)
    assert "is damaged: it holds no layers.1." in message(folder, capsys)


def test_an_export_of_another_format(folder, capsys):
    (folder / MANIFEST).rename(folder / "certificate.json")
    assert "is an export for another program" in message(folder, capsys)
