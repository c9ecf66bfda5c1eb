"""Checkpoints: complete or absent, checked before use, the previous one when damaged."""

import logging
import os

import pytest
import torch
from torch import nn

from questtrain.errors import UserError
from questtrain.store.checkpoint import (
    checkpoint_folders,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)


def save(run, step, keep=5):
    weights = {"weight": torch.full((3, 4), float(step)), "bias": torch.zeros(3)}
    return save_checkpoint(run, step, {"model": weights, "optimizer": {}}, 1.5 * step, keep)


def damage(file, how):
    if how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "one bit":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x55
        file.write_bytes(bytes(data))
    else:
        file.unlink()


def test_round_trip(tmp_path):
    save(tmp_path, 7)
    checkpoint = latest_checkpoint(tmp_path)
    assert (checkpoint.step, checkpoint.wall_seconds) == (7, 10.5)
    model = nn.Linear(4, 3)
    checkpoint.load_weights(model)
    assert torch.equal(model.weight, torch.full((3, 4), 7.0))


def test_keeps_the_newest_and_leaves_no_temporary_folder(tmp_path):
    (tmp_path / "checkpoints" / ".step_00000001.99.tmp").mkdir(parents=True)
    for step in (1, 2, 3, 10, 200):
        save(tmp_path, step, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_00000200"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "truncated"),
        ("model.safetensors", "one bit"),
        ("model.safetensors", "removed"),
        ("optimizer.safetensors", "truncated"),
        ("optimizer.safetensors", "one bit"),
        ("checkpoint.json", "truncated"),
        ("checkpoint.json", "removed"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, caplog, how, name):
    save(tmp_path, 5)
    newest = save(tmp_path, 9)
    damage(newest / name, how)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).step == 5
    assert str(newest) in caplog.text
    assert name in caplog.text
    assert "step 5" in caplog.text
    assert checkpoint_folders(tmp_path)[-1] == newest, "the damaged one is left for inspection"


def test_when_all_are_damaged_nothing_is_guessed(tmp_path):
    for step in (1, 2):
        damage(save(tmp_path, step) / "model.safetensors", "truncated")
    with pytest.raises(UserError, match="No intact checkpoint"):
        latest_checkpoint(tmp_path)


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_weights_of_another_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="another model"):
        open_checkpoint(save(tmp_path, 1)).load_weights(nn.Linear(5, 3))
