"""A run for a runtime, by the whole command: its record, and its weights as files store them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import questtrain
from questtrain.cli.main import main
from questtrain.config import packed_block_bytes, parse_bits
from questtrain.config.loading import read_config
from questtrain.inference import block_weight_bytes
from questtrain.model import Llama
from questtrain.quant import QuantLinear
from questtrain.quant.quantizer import Quantizer
from questtrain.store.checkpoint import latest_checkpoint
from tests.training_data import TINY

RUNS = {
    "gguf": "bits=w4a16 quant.target=gguf quant.group_size=32",
    "groups": "bits=w4a4 quant.group_size=16 quant.scale_dtype=bfloat16",
}


@pytest.fixture(scope="module")
def folders(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    words = ["train", *TINY, "model.hidden_size=64", *corpus, "max_steps=4", f"runs_dir={place}"]
    for name, settings in RUNS.items():
        assert main([*words, *settings.split(), f"name={name}"]) == 0
    return {name: place / name for name in RUNS}


def test_the_record_says_what_was_trained_for(folders: dict[str, Path]) -> None:
    columns = ("target", "scale_dtype", "group_size", "grid", "hadamard")
    found = {
        name: tuple(json.loads((folder / "run.json").read_text())[key] for key in columns)
        for name, folder in folders.items()
    }
    assert found == {
        "gguf": ("gguf", "float16", 32, "int", False),
        "groups": (None, "bfloat16", 16, "centred", True),
    }


@pytest.mark.parametrize("name", RUNS)
def test_packed_equals_unpacked(folders: dict[str, Path], name: str) -> None:
    """Bit for bit, and in as many bytes as `questtrain info` says."""
    folder = folders[name]
    tokens = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    packed = questtrain.load(folder, "cpu", packed=True)
    assert torch.equal(packed(tokens), questtrain.load(folder, "cpu")(tokens))
    config = read_config(folder / "config.yaml")
    told = packed_block_bytes(
        config.model, parse_bits(config.bits), config.quant.skip, config.quant
    )
    assert block_weight_bytes(packed) == told


def test_trained_weights_are_blocks_of_a_gguf_type(folders: dict[str, Path]) -> None:
    """Q4_0: each 32 columns of a row are an fp16 number times -7 to 7, exactly; and the blocks of
    a row differ."""
    folder = folders["gguf"]
    config = read_config(folder / "config.yaml")
    trained = Llama(config.model, config.bits, config.quant)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    checkpoint.load_weights(trained)
    for layer in (each for each in trained.modules() if isinstance(each, QuantLinear)):
        assert isinstance(layer.weight_quantizer, Quantizer)
        values = layer.weight_quantizer(layer.weight).detach()
        blocks = values.reshape(-1, 32)
        stored = layer.weight_quantizer.quantize(layer.weight)
        scale = (stored.scale / 7).reshape(-1, 1)
        assert torch.equal(scale.half().float(), scale)
        integers = (blocks / scale).round()
        assert integers.abs().max() == 7
        assert torch.equal(integers * scale, blocks)
        assert (stored.scale[:, 0] != stored.scale[:, -1]).any()
