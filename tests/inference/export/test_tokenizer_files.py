"""The tokenizer of an export gives the ids that training saw, in transformers."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questtrain.data import load_tokenizer
from questtrain.errors import UserError
from questtrain.inference.export.passages import PASSAGES
from questtrain.inference.export.tokenizer_files import tokenizer_limits, write_tokenizer_files
from tests.data import tokenizers

TRICKY = (
    *("", " ", "  ", " a", "  a", "a ", "a  b", "\n", "\n\n a\n", "a\tb", "a\r\nb", "▁", " ▁a ▁"),
    *("<s>", "x<s>y", " <s> ", "</s>", "<unk>", "<0x41>", "aaaaaaaaa", " " * 12, "\x00", "\u200b"),
    *(
        "é e\u0301 ﬁ ①",
        "日本語",
        "🙂 👩‍👩‍👧",
        "\u00a0a\u3000b",
        "한국어",
        "\uff41\uff42",
        "\u0627\u0644",
    ),
)


def random_texts(count: int) -> list[str]:
    """White space in runs, repeated letters, characters that no vocabulary has."""
    generator = random.Random(0)
    alphabets = ("a b=", "ab  <>s/éß日▁\n\t" + "".join(map(chr, range(33, 127))))
    return [
        "".join(generator.choices(alphabet, k=generator.randint(1, 60)))
        for alphabet in alphabets
        for _ in range(count)
    ]


TEXTS = (*TRICKY, *PASSAGES, *random_texts(200))
TRAINING = [*PASSAGES, Path(argparse.__file__).read_text(encoding="utf-8")[:20_000]]


def pieces(kind: str = "bpe", **options: object) -> bytes:
    return tokenizers.sentencepiece_model(TRAINING, kind, vocab_size=500, **options)


KEPT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
FAMILIES: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: tokenizers.byte_bpe(TRAINING),
    "llama 3": lambda: tokenizers.llama3_bpe(TRAINING),
    "llama 2": lambda: tokenizers.llama2_bpe(TRAINING),
    "WordPiece": lambda: tokenizers.word_piece(TRAINING),
    "SentencePiece": pieces,
    "as Llama's": lambda: pieces(**KEPT),
    "identity": lambda: pieces(normalization_rule_name="identity"),
    "no prefix": lambda: pieces(add_dummy_prefix=False),
    "no bytes": lambda: pieces(byte_fallback=False),
    "characters": lambda: pieces("char"),
    "Unigram": lambda: pieces("unigram"),
    "Unigram as Llama's": lambda: pieces("unigram", **KEPT),
}
TIES = ("Unigram", "Unigram as Llama's")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_that_training_saw(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    made = FAMILIES[family]()
    name = "tokenizer.model" if isinstance(made, bytes) else "tokenizer.json"
    ours = load_tokenizer(tokenizers.save(made, tmp_path / "run" / name))
    write_tokenizer_files(ours, 10_000, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == [ours.bos_id, *ids], text
        if "▁" not in text:  # what stands for a space, typed
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
    assert theirs.bos_token_id == theirs.eos_token_id == ours.bos_id
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == ours.bos_id
    assert bool(tokenizer_limits(ours)) == (family in TIES)
    theirs.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(list(TRICKY))["input_ids"] == theirs(list(TRICKY))["input_ids"]


def test_another_bos_than_the_file_has(tmp_path: Path) -> None:
    """A run may begin its documents with a token that the file knows as text."""
    from transformers import AutoTokenizer

    made = tokenizers.byte_bpe(TRAINING, special=("<pad>", "<s>"))
    path = tokenizers.save(made, tmp_path / "run" / "tokenizer.json")
    content = json.loads(path.read_text())
    content["added_tokens"][1]["special"] = False
    content |= {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst"}}
    content["truncation"]["stride"] = 0
    path.write_text(json.dumps(content))
    ours = load_tokenizer(path, bos="<s>")
    write_tokenizer_files(ours, 64, tmp_path)
    text = "x <s> and more than four tokens <pad>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == [1, *ours.encode(text)]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kind": "word"}, "whole words"), ({"treat_whitespace_as_suffix": True}, "after words")],
)
def test_what_no_tokenizer_json_can_say_is_refused(tmp_path: Path, options, words: str) -> None:
    path = tokenizers.save(pieces(**options), tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match=words):
        write_tokenizer_files(load_tokenizer(path), 64, tmp_path / "out")


def test_where_ids_can_differ_is_said(tmp_path: Path) -> None:
    symbols = pieces(user_defined_symbols=["<sep>"])
    ours = load_tokenizer(tokenizers.save(symbols, tmp_path / "tokenizer.model"))
    assert "user-defined" in tokenizer_limits(ours)[0]
    for made in (tokenizers.unigram(TRAINING), tokenizers.llama2_bpe(["a<s> b<s> c<s>"])):
        path = tokenizers.save(made, tmp_path / "tokenizer.json")
        assert "becomes BOS" in tokenizer_limits(load_tokenizer(path))[0]
