"""C4 from downloaded files, from a hub on loopback, and without any network."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import open_dataset, prepare, sources
from questtrain.data.hub import HubUnreachableError
from questtrain.errors import UserError
from tests.data.corpus import documents_of, sentences, write_jsonl
from tests.data.hub_server import LocalHub, point_hub_at

TRAIN = [sentences(40, seed=i) for i in range(5)]
VALIDATION = sentences(10, seed=100)
HUB = {"hub_dataset": "allenai/c4", "hub_subset": "en", "tokenizer": "org/model"}


@pytest.fixture
def c4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with C4's layout; every file is a piece, as files of its real size are."""
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    for i, documents in enumerate(TRAIN):
        write_jsonl(tmp_path / "en" / f"c4-train.{i:05d}-of-01024.json.gz", documents)
    write_jsonl(tmp_path / "en" / "c4-validation.00000-of-00008.json.gz", VALIDATION)
    return tmp_path / "en"


@pytest.fixture
def c4_hub(c4: Path, local_hub: LocalHub, tokenizer_json: Path) -> LocalHub:
    for file in c4.iterdir():
        local_hub.files[f"datasets/allenai/c4/resolve/main/en/{file.name}"] = file.read_bytes()
    local_hub.files["org/model/resolve/main/tokenizer.json"] = tokenizer_json.read_bytes()
    return local_hub


def test_local_files_use_their_own_validation(c4: Path, make_config) -> None:
    dataset = prepare(make_config("c4", files=[f"{c4}/*.json.gz"]))
    assert documents_of(dataset, dataset.validation) == VALIDATION
    assert documents_of(dataset, dataset.train) == [d for piece in TRAIN for d in piece]


def test_only_the_pieces_that_are_needed(c4: Path, make_config, monkeypatch) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    config = make_config("c4", files=[f"{c4}/*.json.gz"])
    small = prepare(config, tokens_needed=100)
    first = small.train.num_tokens
    assert documents_of(small, small.train) == TRAIN[0]
    assert not small.manifest.complete

    larger = prepare(config, tokens_needed=first + 1)
    assert larger.folder == small.folder
    assert len(larger.train.shards) == 2
    assert larger.unigram_entropy != small.unigram_entropy

    again = prepare(config, tokens_needed=100)
    assert again.train.num_tokens == first, "growth must not change what a run sees"
    assert again.unigram_entropy == small.unigram_entropy
    np.testing.assert_array_equal(again.train.shards[0].read(), small.train.shards[0].read())
    assert len(prepare(config, tokens_needed=10**9).train.shards) == 5
    assert len(open_dataset(small.folder).train.shards) == 5
    assert open_dataset(small.folder, tokens_needed=first).train.num_tokens == first


def test_local_files_without_validation_split_by_hash(c4: Path, make_config) -> None:
    dataset = prepare(make_config("c4", files=[f"{c4}/c4-train*"]), tokens_needed=100)
    documents = documents_of(dataset, dataset.train) + documents_of(dataset, dataset.validation)
    assert sorted(documents) == sorted(TRAIN[0])


def test_from_the_hub(c4_hub: LocalHub, make_config, tmp_path: Path, monkeypatch) -> None:
    config = make_config("c4", **HUB)
    monkeypatch.setattr(sources, "C4_FILE_BYTES", 4000)
    dataset = prepare(config, tokens_needed=100)
    assert documents_of(dataset, dataset.train) == TRAIN[0]
    assert documents_of(dataset, dataset.validation) == VALIDATION
    assert dataset.tokenizer.name == "org/model"
    asked = {Path(path).name for path in c4_hub.requests if "/resolve/" in path}
    assert asked == {
        "tokenizer.json",
        "tokenizer_config.json",
        "c4-train.00000-of-01024.json.gz",
        "c4-validation.00000-of-00008.json.gz",
    }

    # Another machine without network and with an empty hub cache, but with the copied folder.
    point_hub_at("http://127.0.0.1:9", monkeypatch, tmp_path / "elsewhere")
    copied = tmp_path / "copied"
    shutil.copytree(dataset.folder, copied / dataset.folder.name)
    there = prepare(make_config("c4", **HUB, cache_dir=str(copied)), tokens_needed=100)
    assert there.folder.parent == copied
    assert there.manifest == dataset.manifest
    with pytest.raises(HubUnreachableError, match="data=stdlib"):
        prepare(make_config("c4", **HUB, cache_dir=str(copied)), tokens_needed=10**6)


def test_hub_without_the_file(c4_hub: LocalHub, make_config) -> None:
    c4_hub.files.pop("org/model/resolve/main/tokenizer.json")
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        prepare(make_config("c4", **HUB), tokens_needed=10)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("GatedRepo", "is gated: accept its licence"),
        ("RepoNotFound", "has no repository 'org/model'"),
    ],
)
def test_refused_tokenizer(c4_hub: LocalHub, make_config, code: str, message: str) -> None:
    c4_hub.files.pop("org/model/resolve/main/tokenizer.json")
    c4_hub.refusal = code
    with pytest.raises(UserError, match=message):
        prepare(make_config("c4", **HUB), tokens_needed=10)


def test_damaged_download(c4: Path, make_config) -> None:
    file = c4 / "c4-train.00001-of-01024.json.gz"
    file.write_bytes(file.read_bytes()[:200])
    config = make_config("c4", files=[f"{c4}/*.json.gz"])
    with pytest.raises(UserError, match=r"c4-train\.00001.*damaged or not completely downloaded"):
        prepare(config)
    file.write_bytes(b"this is no gzip file")
    with pytest.raises(UserError, match=r"c4-train\.00001.*"):
        prepare(config)
    file.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"c4-train\.00001.*is empty"):
        prepare(config)


def test_unknown_subset(make_config) -> None:
    with pytest.raises(UserError, match=r"unknown data\.hub_subset 'english': choose from en"):
        prepare(make_config("c4", hub_dataset="allenai/c4", hub_subset="english"))


@pytest.mark.parametrize(
    "variables", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_without_network_one_message_within_seconds(tmp_path: Path, variables) -> None:
    script = (
        "from questtrain.config.schema import DataConfig\n"
        "from questtrain.data import prepare\n"
        "from questtrain.errors import UserError\n"
        "config = DataConfig('c4', 'c4', hub_dataset='allenai/c4', hub_subset='en',\n"
        f"    tokenizer='meta-llama/Llama-2-7b-hf', cache_dir={str(tmp_path)!r})\n"
        "try: prepare(config, 1000)\n"
        "except UserError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")} | variables
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - start < 15  # 8 for the hub, the rest for imports
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    for advice in ("data=stdlib", "data=text data.files=", "data prepare data=c4", "en/*.json.gz"):
        assert advice in done.stdout
