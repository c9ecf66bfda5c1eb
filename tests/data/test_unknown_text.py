"""What a tokenizer cannot encode or does not know: named with its document, and counted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from questtrain.data import load_tokenizer, prepare, sources
from questtrain.errors import UserError
from tests.data import tokenizers
from tests.data.corpus import sentences, write_jsonl

TEXTS = sentences(40)
FOREIGN = "x caf\u00e9 \u4f60\u597d"


def words_without_unknown():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word for text in TEXTS for word in text.split()}
    vocabulary = {word: i for i, word in enumerate(["<s>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_errors_name_the_document(tmp_path: Path, make_config, monkeypatch, kind, workers) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    made = (
        tokenizers.unigram(TEXTS, unknown=False) if kind == "unigram" else words_without_unknown()
    )
    tokenizer = tokenizers.save(made, tmp_path / "t" / "mine.json")
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    write_jsonl(tmp_path / "b.jsonl", [*TEXTS[:7], FOREIGN])
    config = make_config(files=[f"{tmp_path}/*.jsonl"], tokenizer=str(tokenizer))
    config.num_workers = workers
    with pytest.raises(UserError, match=r"mine\.json cannot encode .*b\.jsonl, line 8: ") as caught:
        prepare(config)
    assert "one with byte fallback" in str(caught.value)
    assert not list(Path(config.cache_dir).rglob("*.tmp"))
    with pytest.raises(UserError):
        load_tokenizer(tokenizer).encode(FOREIGN)


def no_unknown_bpe():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "unknown", "lost"),
    [
        (lambda: tokenizers.byte_bpe(TEXTS), 0, 0),
        (lambda: tokenizers.unigram(TEXTS), 6, 0),  # é and, fused, 你好: twice in two splits
        (no_unknown_bpe, 0, 9),
        (lambda: tokenizers.sentencepiece_model(TEXTS), 0, 0),
        (lambda: tokenizers.sentencepiece_model(TEXTS, byte_fallback=False), 6, 0),
    ],
)
def test_what_is_not_known_is_counted_and_said_once(
    tmp_path: Path, make_config, caplog, make, unknown: int, lost: int
) -> None:
    made = make()
    name = "tokenizer.model" if isinstance(made, bytes) else "tokenizer.json"
    tokenizer = tokenizers.save(made, tmp_path / "t" / name)
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, FOREIGN, FOREIGN])
    validation = write_jsonl(tmp_path / "v.jsonl", [FOREIGN])
    config = make_config(
        files=[str(path)], validation_files=[str(validation)], tokenizer=str(tokenizer)
    )
    with caplog.at_level(logging.WARNING):
        manifest = prepare(config).manifest
        prepare(config)
    assert (manifest.unknown_tokens, manifest.lost_characters) == (unknown, lost)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (unknown > 0) + (lost > 0)
    if unknown:
        assert "does not know all of the text: 6 of" in said[0]
    if lost:
        assert "9 characters of the text are lost" in said[0]
