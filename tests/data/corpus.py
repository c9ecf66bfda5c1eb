"""Documents for the tests of the data wing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from questtrain.data import TokenDataset
from questtrain.data.shards import TokenSplit

WORDS = "the quick brown fox jumps over a lazy dog while rain falls on every green hill"


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct documents of 5 to 30 words."""
    rng = np.random.default_rng(seed)
    return [
        f"{i} " + " ".join(rng.choice(WORDS.split(), size=rng.integers(5, 30)).tolist())
        for i in range(count)
    ]


def write_jsonl(path: Path, documents: Iterable[str], field: str = "text") -> Path:
    """One document a line; compressed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({field: d, "url": "u"}) + "\n" for d in documents)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def documents_of(dataset: TokenDataset, split: TokenSplit) -> list[str]:
    """The documents in the shards, decoded; each must be preceded by BOS."""
    bos = dataset.tokenizer.bos_id
    documents = []
    for shard in split:
        tokens = shard.read()
        starts = np.flatnonzero(tokens == bos)
        assert starts[0] == 0
        documents += [dataset.tokenizer.decode(part[1:]) for part in np.split(tokens, starts[1:])]
    return documents


def all_documents(dataset: TokenDataset) -> list[str]:
    """The documents of both splits, sorted."""
    return sorted(documents_of(dataset, dataset.train) + documents_of(dataset, dataset.validation))
