"""Safetensors in pieces: what the library reads is what was written, in any order."""

import json

import pytest
import torch
from safetensors.torch import load_file

from questtrain.errors import UserError
from questtrain.store.tensor_files import INDEX, Planned, TensorFiles
from questtrain.store.weight_files import WeightFiles

TENSORS = {
    "codes": torch.arange(13, dtype=torch.uint8),
    "weight": torch.randn(3, 5),
    "half": torch.randn(7).to(torch.bfloat16),
    "none": torch.zeros(0, 4),
    "flag": torch.ones(()),
}
PLANNED = {name: Planned(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def write(folder, shard_bytes, tensors=TENSORS):
    with TensorFiles(folder, PLANNED, shard_bytes, {"format": "pt"}) as files:
        for name, tensor in reversed(tensors.items()):
            files.write(name, tensor)


def test_one_file(tmp_path):
    write(tmp_path, 10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    stored = WeightFiles.of(tmp_path)
    assert stored.files == ["model.safetensors"]
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(stored.read(name, PLANNED[name]), tensor)


def test_parts_and_their_index(tmp_path):
    """A limit of 20 bytes: the weight of 60 has a file of its own, small ones share theirs."""
    write(tmp_path, 20)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(each.size for each in PLANNED.values())
    assert index["weight_map"] == {
        "codes": "model-00001-of-00003.safetensors",
        "weight": "model-00002-of-00003.safetensors",
        "half": "model-00003-of-00003.safetensors",
        "none": "model-00003-of-00003.safetensors",
        "flag": "model-00003-of-00003.safetensors",
    }
    stored = WeightFiles.of(tmp_path)
    assert len(stored.files) == 4
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])
        assert torch.equal(stored.read(name, PLANNED[name]), TENSORS[name])


def test_what_was_not_planned_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"weight is torch.float32 \(5, 3\)"),
        TensorFiles(tmp_path, PLANNED, 10**9, {}) as files,
    ):
        files.write("weight", TENSORS["weight"].T)


def test_what_was_planned_must_be_written(tmp_path):
    with pytest.raises(ValueError, match="flag was planned and not written"):
        write(tmp_path, 10**9, {name: TENSORS[name] for name in TENSORS if name != "flag"})


def test_damage_is_named(tmp_path):
    write(tmp_path, 20)
    stored = WeightFiles.of(tmp_path)
    with pytest.raises(UserError, match="it holds no bias"):
        stored.read("bias", Planned(torch.float32, (1,)))
    with pytest.raises(UserError, match=r"weight is torch.float32 \(3, 5\), not"):
        stored.read("weight", Planned(torch.float32, (5, 3)))
    file = tmp_path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors is damaged"):
        stored.read("weight", PLANNED["weight"])
    file.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors is damaged"):
        stored.read("weight", PLANNED["weight"])
