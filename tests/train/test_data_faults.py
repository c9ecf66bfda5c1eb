"""Shards that vanish, are cut or changed under a run, and file systems that fail: one message, the
right exit code, nothing lost, and the same command goes on to the same numbers, bit for bit."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from questtrain.cli.main import main
from questtrain.data import token_reads
from questtrain.errors import ReadFailed
from questtrain.store import checkpoint, files, patience
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.train.parallel import RankEndsAlone, World
from questtrain.train.trainer import Trainer
from tests.failing import failing
from tests.training_data import TINY, rows

RUN = (*TINY, "bits=bf16", "max_steps=6", "log_every=1", "eval_every=6", "checkpoint_every=2")
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory) -> Path:
    """A run without any fault, and the cache that it read: ``run`` and ``cache`` in a folder."""
    folder = tmp_path_factory.mktemp("prepared")
    words = [*RUN, *corpus, f"runs_dir={folder}", "name=run", f"data.cache_dir={folder}/cache"]
    assert main(["train", *words]) == 0
    return folder


@pytest.fixture
def cache(prepared, tmp_path) -> Path:
    """A cache of the test's own."""
    return shutil.copytree(prepared / "cache", tmp_path / "cache")


@pytest.fixture
def words(corpus, tmp_path, cache) -> list[str]:
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", f"data.cache_dir={cache}"]
    return ["train", *words]


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """What was waited for, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(patience, "sleep", waited.append)
    return waited


def the_shard(cache: Path) -> Path:
    (shard,) = cache.glob("*/train-*.bin")
    return shard


def same_run(one: Path, other: Path) -> None:
    for key in ("train_loss", "grad_norm", "val_loss"):
        assert rows(one, key) == rows(other, key), key
    weights = [checkpoint_folders(run)[-1] / "model.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def before_step(patch: pytest.MonkeyPatch, step: int, fault: Callable[[], object]) -> None:
    update = Trainer._update

    def updating(trainer: Trainer) -> dict:
        if trainer.step == step:
            fault()
        return update(trainer)

    patch.setattr(Trainer, "_update", updating)


def overwritten(shard: Path) -> None:
    """Other tokens in the same file, of the same size."""
    tokens = np.fromfile(shard, "<u2")
    with shard.open("r+b") as file:
        file.write(tokens[::-1].tobytes())


def replaced(shard: Path) -> None:
    """Another file of the same size under the same name."""
    other = shard.with_suffix(".new")
    np.fromfile(shard, "<u2")[::-1].tofile(other)
    os.replace(other, shard)


FAULTS = {
    "gone": (Path.unlink, "it is missing"),
    "cut": (lambda shard: os.truncate(shard, 4096), "it holds 4,096 bytes, and held "),
    "empty": (lambda shard: os.truncate(shard, 0), "it holds 0 bytes, and held "),
    "overwritten": (overwritten, "it was changed after it was opened"),
    "replaced": (replaced, "it was changed after it was opened"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_is_damaged_under_a_run(
    prepared, words, cache, tmp_path, capsys, monkeypatch, fault
):
    """Said when it is read next; refused while it stays so; and put back, all is as if nothing had
    been."""
    shard, run = the_shard(cache), tmp_path / "run"
    kept = shutil.copyfile(shard, tmp_path / "kept.bin")
    damage, reason = FAULTS[fault]
    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda: damage(shard))
        assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(said) == 1
    assert f"error: the token shard {shard} is damaged: {reason}" in said[0]
    assert "To repair: put it back as it was, or delete it and run `questtrain data" in said[0]
    assert [folder.name for folder in checkpoint_folders(run)] == ["step_00000002", "step_00000004"]
    if fault != "gone":  # an absent one is made again
        assert main(words) == 2
        assert f"the token shard {shard} is damaged: " in capsys.readouterr().err
        shutil.copyfile(kept, shard)
    assert main(words) == 0
    same_run(prepared / "run", run)


def test_a_validation_shard_that_is_cut(prepared, words, cache, tmp_path, capsys, monkeypatch):
    (shard,) = cache.glob("*/validation-*.bin")
    kept = shutil.copyfile(shard, tmp_path / "kept.bin")
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda: os.truncate(shard, 64))
        assert main(words) == 2
    assert f"the token shard {shard} is damaged: it holds 64 bytes" in capsys.readouterr().err
    shutil.copyfile(kept, shard)
    assert main(words) == 0
    same_run(prepared / "run", tmp_path / "run")


def test_the_same_bytes_in_another_file_are_the_same_shard(
    prepared, words, cache, tmp_path, caplog, monkeypatch
):
    """As a second preparation or rsync leaves them: compared once, and read on."""
    shard = the_shard(cache)

    def copied() -> None:
        shutil.copyfile(shard, shard.with_suffix(".new"))
        os.replace(shard.with_suffix(".new"), shard)

    before_step(monkeypatch, 3, copied)
    assert main(words) == 0
    assert caplog.text.count("comparing it with its checksum") == 1
    same_run(prepared / "run", tmp_path / "run")


def test_a_shard_changed_between_two_starts(words, cache, capsys):
    assert main([*words, "checkpoint_every=2", "max_steps=4"]) == 0
    run = cache.parent / "run"
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    overwritten(the_shard(cache))
    assert main([*words, "max_steps=4"]) == 2
    assert "is damaged: its checksum differs" in capsys.readouterr().err


def test_a_file_that_is_cut_while_a_real_process_trains(words, cache, tmp_path):
    """A memory map would die of SIGBUS here, without a word."""
    command = [sys.executable, "-m", "questtrain.cli.main", *words, "max_steps=1000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"train_loss") < 3:
            assert process.poll() is None
        os.truncate(the_shard(cache), 4096)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "it holds 4,096 bytes" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", TRANSIENT)
def test_reads_and_writes_that_fail_for_a_moment_are_tried_again(
    prepared, words, tmp_path, monkeypatch, caplog, pauses, number
):
    """Of shards and of the run's files: each failure is a warning, and nothing else changes."""
    read = failing(3, number, os.preadv)
    flush = failing(2, number, os.fsync)
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda: patch.setattr(token_reads.os, "preadv", read))
        patch.setattr(files.os, "fsync", flush)
        assert main(words) == 0
    assert pauses == [1.0, 2.0, 1.0, 2.0, 4.0]
    said = [line for line in caplog.messages if "trying again in" in line]
    assert [line.partition(" ")[0] for line in said] == ["writing"] * 2 + ["reading"] * 3
    assert all(os.strerror(number) in line for line in said)
    same_run(prepared / "run", tmp_path / "run")


@pytest.mark.parametrize("number", TRANSIENT)
def test_a_shard_that_cannot_be_read_for_long(
    prepared, words, cache, tmp_path, capsys, monkeypatch, pauses, number
):
    with monkeypatch.context() as patch:
        read = failing(1000, number, os.preadv)
        before_step(patch, 5, lambda: patch.setattr(token_reads.os, "preadv", read))
        assert main(words) == 74
    assert pauses == list(patience.PAUSES)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "stopped: " in line]
    shard = the_shard(cache)
    assert f"{shard} cannot be read, tried several times: {os.strerror(number)}" in said
    assert "Last good checkpoint: step 4 (" in said
    assert said.endswith("When the file system works again, the same command goes on.")
    assert main(words) == 0
    same_run(prepared / "run", tmp_path / "run")


@pytest.mark.parametrize("number", TRANSIENT)
def test_a_checkpoint_that_cannot_be_written_for_long(
    prepared, words, tmp_path, capsys, monkeypatch, pauses, number
):
    run = tmp_path / "run"
    save = checkpoint.save_file

    def saving(tensors: dict, path: Path) -> None:
        if "00000004" in str(path):
            path.write_bytes(b"half a file")
            raise OSError(number, os.strerror(number))
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", saving)
        assert main(words) == 74
    assert pauses == list(patience.PAUSES)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "stopped: " in line]
    assert f"step_00000004 cannot be written: {os.strerror(number)} (needs " in said
    assert "Last good checkpoint: step 2 (" in said
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000002"]
    assert main(words) == 0
    same_run(prepared / "run", run)


def test_a_rank_whose_disk_fails_ends_alone_with_the_same_exit_code():
    """The others may be waiting for its gradients: it must not wait for their consent."""

    def reading() -> None:
        raise ReadFailed(errno.EIO, os.strerror(errno.EIO), "shard.bin")

    with pytest.raises(ReadFailed):
        World().fail_alone(reading)
    with pytest.raises(RankEndsAlone, match=r"shard\.bin cannot be read") as ended:
        World(rank=1, size=2).fail_alone(reading)
    assert ended.value.exit_code == ReadFailed.exit_code == 74
