"""A hub that fails in the middle of a preparation, and disks that do: tried again for a while, then
a stop from which the same command goes on, to the same tokens bit for bit."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.data import TokenDataset, documents, pool, prepare
from questtrain.data.hub import HubUnreachableError
from questtrain.errors import PreparationStopped, UserError
from questtrain.store import files, patience
from tests.data.corpus import sentences, write_jsonl
from tests.data.hub_server import LocalHub, point_hub_at
from tests.failing import failing

NAME = "datasets/allenai/c4/resolve/main/realnewslike/c4-{}.json.gz"
PIECES = 3
TRAIN = [NAME.format(f"train.{i:05d}-of-00512") for i in range(PIECES)]
VALIDATION = NAME.format("validation.00000-of-00001")
C4 = {"hub_dataset": "allenai/c4", "hub_subset": "realnewslike", "tokenizer": "org/model"}


@pytest.fixture
def hub(local_hub: LocalHub, tokenizer_json: Path, tmp_path: Path) -> LocalHub:
    for seed, name in enumerate((*TRAIN, VALIDATION)):
        file = write_jsonl(tmp_path / "made.json.gz", sentences(60, seed=seed))
        local_hub.files[name] = file.read_bytes()
    local_hub.files["org/model/resolve/main/tokenizer.json"] = tokenizer_json.read_bytes()
    return local_hub


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(patience, "sleep", waited.append)
    return waited


@pytest.fixture
def needed(hub: LocalHub, make_config, monkeypatch, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    """Tokens that need all pieces, and what an undisturbed preparation makes of them."""
    point_hub_at(hub.address, monkeypatch, tmp_path / "undisturbed")
    config = make_config("c4", **C4, cache_dir=str(tmp_path / "undisturbed"))
    first = prepare(config, tokens_needed=1).train.num_tokens
    tokens = first * PIECES - first // 2
    made = content(prepare(config, tokens_needed=tokens))
    assert len([name for name in made if name.startswith("train-")]) == PIECES
    point_hub_at(hub.address, monkeypatch, tmp_path / "disturbed")
    hub.requests.clear()
    return tokens, made


def content(dataset: TokenDataset) -> dict[str, bytes]:
    """Everything in the folder but the lock, by name."""
    files = [path for path in dataset.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(dataset.folder)): path.read_bytes() for path in files}


def test_connections_that_break_in_the_middle(
    hub, needed, make_config, monkeypatch, pauses, caplog
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)
    hub.faults = {
        TRAIN[0]: [503, "reset", 500],
        TRAIN[1]: ["cut", "reset"],
        TRAIN[2]: ["stall", 502],
        VALIDATION: ["reset"],
    }
    tokens, undisturbed = needed
    dataset = prepare(make_config("c4", **C4), tokens_needed=tokens)
    assert content(dataset) == undisturbed
    assert not any(hub.faults.values()), "all were met"
    said = [line for line in caplog.messages if "trying again in" in line]
    assert len(said) == len(pauses) >= 5
    assert all(line.startswith("downloading allenai/c4/realnewslike/c4-") for line in said)
    assert pauses[:4] == [1.0, 1.0, 2.0, 4.0], "they grow with each failure of a file"
    assert hub.ranges, "a connection that only closes lets the file go on where it was"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hub_that_fails_for_long(
    hub, needed, make_config, monkeypatch, pauses, workers, tmp_path
) -> None:
    """A stop that keeps what is made, and the same command goes on."""
    tokens, undisturbed = needed
    config = make_config("c4", **C4, num_workers=workers)
    if workers > 1:  # processes of their own, which wait for nothing
        script = (
            "from questtrain.store import patience; patience.PAUSES = (0.01,)\n"
            "from questtrain.data.worker import main; main()"
        )
        monkeypatch.setattr(pool, "python_command", lambda _: (sys.executable, "-c", script))
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "disturbed" / "hub"))
    hub.faults = {TRAIN[1]: [503] * 20}
    with pytest.raises(PreparationStopped, match=r"c4-train\.00001.* tried several times") as stop:
        prepare(config, tokens_needed=tokens)
    assert stop.value.exit_code == 74
    assert "What is prepared is kept, and the same command goes on from there." in str(stop.value)
    if workers == 1:
        assert pauses == list(patience.PAUSES)
    (folder,) = (path for path in Path(config.cache_dir).iterdir() if path.name.startswith("c4-"))
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("pieces/*.json")}
    assert kept
    assert not list(folder.glob("manifest.json"))
    assert not list(folder.rglob("*.tmp"))
    hub.faults = {}
    dataset = prepare(config, tokens_needed=tokens)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is made twice"
    assert content(dataset) == undisturbed


def test_the_command_says_it_once(hub, needed, capsys, monkeypatch, pauses, tmp_path) -> None:
    hub.faults = {TRAIN[0]: ["reset"] * 20}
    words = [f"data.{key}={value}" for key, value in C4.items()]
    words += [f"data.cache_dir={tmp_path}/cache", "data.num_workers=1"]
    assert main(["data", "prepare", "data=c4", *words, "data.max_tokens=100"]) == 74
    said = capsys.readouterr().err
    assert said.count("stopped: the download of allenai/c4/realnewslike/c4-train.00000") == 1
    assert "Traceback" not in said


def test_what_the_hub_refuses_in_the_middle_is_not_tried_again(
    hub, needed, make_config, pauses
) -> None:
    tokens, _ = needed
    del hub.files[TRAIN[1]]
    with pytest.raises(UserError, match=r"has no file 'realnewslike/c4-train\.00001"):
        prepare(make_config("c4", **C4), tokens_needed=tokens)
    assert pauses == []


def test_a_hub_that_is_down_when_a_preparation_goes_on(hub, needed, make_config, pauses) -> None:
    """What is asked first is a file that is missing: said within seconds, not after minutes."""
    tokens, undisturbed = needed
    config = make_config("c4", **C4)
    prepare(config, tokens_needed=1)
    hub.down = True
    with pytest.raises(HubUnreachableError, match="data=stdlib"):
        prepare(config, tokens_needed=tokens)
    assert pauses == []
    hub.down = False
    assert content(prepare(config, tokens_needed=tokens)) == undisturbed


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_disk_that_fails_while_a_text_is_prepared(
    make_config, tmp_path, monkeypatch, pauses, number, what
) -> None:
    """For long: a stop, and the same command goes on. For a moment: nothing else changes."""
    write_jsonl(tmp_path / "a.jsonl", sentences(50))
    whole = content(prepare(make_config(files=[f"{tmp_path}/*.jsonl"])))
    config = make_config(files=[f"{tmp_path}/*.jsonl"], cache_dir=str(tmp_path / "other"))

    def disk_fails(patch: pytest.MonkeyPatch, times: int) -> None:
        suffixes = documents.JSON_SUFFIXES
        if what == "read":
            rows = documents.ROWS[suffixes]
            patch.setitem(documents.ROWS, suffixes, failing(times, number, rows))
        else:
            patch.setattr(files.os, "fsync", failing(times, number, os.fsync))

    with monkeypatch.context() as patch:
        disk_fails(patch, 1000)
        with pytest.raises(PreparationStopped, match="the same command goes on") as stop:
            prepare(config)
    assert os.strerror(number) in str(stop.value)
    assert pauses == list(patience.PAUSES)
    pauses.clear()
    with monkeypatch.context() as patch:
        disk_fails(patch, 3)
        assert content(prepare(config)) == whole
    assert pauses == [1.0, 2.0, 4.0]
