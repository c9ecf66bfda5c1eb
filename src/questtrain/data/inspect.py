"""What is in a prepared folder, for ``questtrain data inspect``."""

from __future__ import annotations

from typing import Any

import numpy as np

from questtrain.data.records import totals
from questtrain.data.shards import TokenDataset, TokenSplit

SAMPLE_TOKENS = 256


def describe(dataset: TokenDataset) -> dict[str, Any]:
    """Plain data about ``dataset``, ready for a table or for JSON.

    ``train`` and ``validation`` are about what the run that opened it reads; ``bytes`` are bytes
    on disk, ``bytes_per_token`` is UTF-8 text per token (None for tokens made elsewhere),
    ``unigram_entropy`` is in nats, ``dtype`` names the width of the ids (several, if the shards
    differ), ``sample`` is the decoded beginning of the first document.
    """
    manifest = dataset.manifest
    shards = (*dataset.train, *dataset.validation)
    return {
        "name": manifest.name,
        "folder": str(dataset.folder),
        "complete": manifest.complete,
        "source": manifest.source,
        "tokenizer": dataset.tokenizer.name,
        "tokenizer_sha256": manifest.tokenizer["sha256"],
        "vocab_size": dataset.vocab_size,
        "bos_id": manifest.bos_id,
        "dtype": ", ".join(sorted({np.dtype(shard.dtype).name for shard in shards})),
        "train": _describe_split(dataset.train),
        "validation": _describe_split(dataset.validation),
        "unigram_entropy": dataset.unigram_entropy,
        "skipped": manifest.skipped,
        "unknown_tokens": manifest.unknown_tokens,
        "lost_characters": manifest.lost_characters,
        "sample": _sample(dataset),
    }


def _describe_split(split: TokenSplit) -> dict[str, Any]:
    whole = totals([shard.record for shard in split])
    tokens, text_bytes = whole["tokens"], whole["text_bytes"]
    return {
        "shards": whole["shards"],
        "tokens": split.num_tokens,
        "documents": whole["documents"],
        "bytes": sum(shard.path.stat().st_size for shard in split),
        "bytes_per_token": text_bytes / tokens if tokens and text_bytes is not None else None,
    }


def _sample(dataset: TokenDataset) -> str:
    """The first document of the training split, up to the next BOS, cut short and decoded."""
    if not dataset.train.shards:
        return ""
    first = dataset.train.shards[0]
    ids = first.read(0, min(SAMPLE_TOKENS, first.num_tokens)).tolist()
    bos = dataset.manifest.bos_id
    end = ids.index(bos, 1) if bos in ids[1:] else len(ids)
    return dataset.tokenizer.decode(ids[:end])
