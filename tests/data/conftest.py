"""Tiny tokenizers and corpora; every cache lies under tmp_path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from questtrain.config.schema import DataConfig
from questtrain.data.records import ShardRecord
from questtrain.data.shards import Shard
from questtrain.data.token_reads import Stamp
from questtrain.data.tokenizer_choice import train_bpe
from tests.data.corpus import sentences
from tests.data.hub_server import LocalHub, point_hub_at


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe(sentences(200), 300), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300)),
            model_writer=model,
            vocab_size=350,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )
    return folder / "tokenizer.model"


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_json: Path) -> Callable[..., DataConfig]:
    def make(source: str = "text", **fields: object) -> DataConfig:
        defaults: dict[str, object] = {
            "name": source,
            "source": source,
            "tokenizer": str(tokenizer_json),
            "validation_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
            "num_workers": 1,
        }
        return DataConfig(**(defaults | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., tuple[Shard, ...]]:
    """Shards whose tokens count up across all of them, so that a token tells where it stands."""

    def make(*sizes: int) -> tuple[Shard, ...]:
        shards, first = [], 0
        for number, size in enumerate(sizes):
            path = tmp_path / f"train-{number:05d}.bin"
            np.arange(first, first + size, dtype="<u4").tofile(path)
            record = ShardRecord(path.name, "train", f"train-{number:05d}", size, 1, 1, "")
            shards.append(Shard(path, "<u4", size, record, Stamp.of(path)))
            first += size
        return tuple(shards)

    return make


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that refuses connections, and an empty local cache."""
    point_hub_at("http://127.0.0.1:9", monkeypatch, tmp_path)


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub on loopback with the files the test puts there, and an empty local cache."""
    with LocalHub() as hub:
        point_hub_at(hub.address, monkeypatch, tmp_path)
        yield hub
