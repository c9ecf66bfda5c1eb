"""Checkpoints: complete or absent, checked before use, the previous one when damaged."""

import json
import logging
import os

import pytest
import torch
from torch import nn

from questtrain.errors import UserError, WriteFailed
from questtrain.store import checkpoint
from questtrain.store.checkpoint import (
    checkpoint_folders,
    last_good_checkpoint,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
    step_of,
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


def steps(run):
    return [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(run)]


def change(folder, **values):
    """Write other values into checkpoint.json; ... leaves a key out."""
    file = folder / "checkpoint.json"
    state = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in state.items() if value is not ...}))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"step": 10}, "'step' holds 10, and the folder is of step 9"),
        ({"step": -9}, "'step' holds -9"),
        ({"step": "9"}, "'step' holds '9'"),
        ({"step": 9.0}, "'step' holds 9.0"),
        ({"step": True}, "'step' holds True"),
        ({"step": ...}, "'step' is missing"),
        ({"wall_seconds": -1.0}, "'wall_seconds' holds -1.0"),
        ({"wall_seconds": float("nan")}, "'wall_seconds' holds nan"),
        ({"wall_seconds": None}, "'wall_seconds' holds None"),
        ({"wall_seconds": ...}, "'wall_seconds' is missing"),
        ({"sha256": {}}, "checkpoint.json holds no checksum of model.safetensors"),
        ({"sha256": []}, "'sha256' holds []"),
        ({"sha256": {"model.safetensors": 5}}, "sha256: 'model.safetensors' holds 5"),
        ({"sha256": {"model.safetensors": "0" * 64}}, "holds no checksum of optimizer"),
        ({"sha256": ...}, "'sha256' is missing"),
    ],
)
def test_a_record_is_not_believed_for_being_there(tmp_path, caplog, values, problem):
    """Named, and the checkpoint before it is used."""
    save(tmp_path, 5)
    newest = save(tmp_path, 9)
    change(newest, **values)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).step == 5
    assert f"checkpoint {newest} is damaged: " in caplog.text
    assert problem in caplog.text


def test_a_file_that_no_checksum_covers(tmp_path):
    folder = save(tmp_path, 5)
    (folder / "more.safetensors").write_text("x")
    with pytest.raises(UserError, match="no checksum of more"):
        open_checkpoint(folder)


def test_weights_that_are_no_tensors_though_their_checksum_is_right(tmp_path):
    folder = save(tmp_path, 5)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    sums = json.loads((folder / "checkpoint.json").read_text())["sha256"]
    sums["model.safetensors"] = checkpoint.sha256_of(folder / "model.safetensors")
    change(folder, sha256=sums)
    with pytest.raises(UserError, match=r"model\.safetensors holds no tensors .*checksum is right"):
        open_checkpoint(folder)


def test_without_an_optimizer_nothing_is_resumed(tmp_path):
    """A folder for inference may go without it."""
    weights = {"model": {"weight": torch.zeros(2)}}
    opened = open_checkpoint(save_checkpoint(tmp_path, 3, weights, 1.0, keep=1))
    with pytest.raises(UserError, match="holds no optimizer"):
        opened.tensors("optimizer")


@pytest.mark.parametrize(("at_most", "kept"), [(5, [5, 6]), (4, [4, 6]), (3, [2, 6]), (1, [6])])
def test_an_older_one_that_may_be_gone_back_to_is_kept(tmp_path, at_most, kept):
    """The newest intact one up to a step: that of step 3 is damaged."""
    for step in (2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step_00000003/model.safetensors").write_bytes(b"damaged")
    parts = {"model": {"weight": torch.zeros(2)}, "optimizer": {}}
    save_checkpoint(tmp_path, 6, parts, 1.0, 1, (), at_most)
    intact = [step_of(folder) for folder in checkpoint_folders(tmp_path)]
    assert [step for step in intact if step != 3] == kept
    latest = latest_checkpoint(tmp_path, at_most)
    assert (6 if latest is None else latest.step) == kept[0]


@pytest.mark.parametrize("known", [(), (1, 2, 3, 4)])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_damaged_ones_take_nobody_s_place(tmp_path, keep, known):
    """Newer than what is saved, or between what is kept; the intact ones before it are."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    damage(save(tmp_path, 5) / "model.safetensors", "one bit")
    damage(save(tmp_path, 100) / "model.safetensors", "truncated")
    parts = {"model": {"weight": torch.zeros(2)}, "optimizer": {}}
    save_checkpoint(tmp_path, 6, parts, 1.0, keep, known)
    intact = [step for step in steps(tmp_path) if step not in (5, 100)]
    assert intact == [*range(6 - keep, 5), 6]
    assert 100 in steps(tmp_path), "left for inspection"
    assert latest_checkpoint(tmp_path).step == 6


def test_the_one_just_saved_is_kept_whatever_is_newer(tmp_path):
    save(tmp_path, 50)
    save(tmp_path, 7, keep=1)
    assert steps(tmp_path) == [7, 50]


def test_a_kill_while_an_old_one_is_removed_leaves_no_part_of_it(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def killed(path, **options):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [2]
    save(tmp_path, 3, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_a_full_disk_leaves_the_last_one_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(tensors, file):
        file.write_bytes(b"half")
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WriteFailed, match=r"step_00000002 cannot be written.*needs 60 bytes"):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert last_good_checkpoint(tmp_path).startswith("step 1 (")
    damage(checkpoint_folders(tmp_path)[0] / "model.safetensors", "truncated")
    assert last_good_checkpoint(tmp_path) == "none that is intact"
    assert last_good_checkpoint(tmp_path / "other") == "none"


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_weights_have_the_mode_of_every_other_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        folder = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}


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
