"""Long documents: the tokens are those of the whole, and memory stays bounded."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import load_tokenizer, prepare, segments
from questtrain.data.documents import Document
from questtrain.data.segments import encode_segments, segments_of
from questtrain.data.text_rows import TextField
from questtrain.data.tokenizer_choice import train_bpe
from tests.data import tokenizers
from tests.data.corpus import write_jsonl

CHINESE = "自然语言处理是计算机科学的一个方向。它研究人与计算机之间用语言通信的方法,理论。"
CODE = Path(os.__file__).with_name("codecs.py").read_text(encoding="utf-8")[:30_000]
ODD = [
    *(
        "word",
        "the ",
        " ",
        "  ",
        "\n",
        "\n\n\t",
        "\r\n",
        "。",
        "é",
        "e\u0301",
        "123456",
        "...",
        "🙂",
    ),
    *("don't", "<s>", "(x, y)", "    return", "\u3000", "aaaaaaaaa", "自然", "\u200b"),
]


def noise(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(ODD, k=count))


TEXTS = [CODE, CHINESE * 40, noise(3000, 0), noise(3000, 1)]
TRAINING = [CODE, CHINESE, noise(500, 2), noise(500, 3)]

FAMILIES = {
    "prefix-space": lambda: tokenizers.byte_bpe(TRAINING, prefix=True),
    "llama3": lambda: tokenizers.llama3_bpe(TRAINING),
    "llama2": lambda: tokenizers.llama2_bpe(TRAINING),
    "unigram-always": lambda: tokenizers.unigram(TRAINING),
    "unigram-first": lambda: tokenizers.unigram(TRAINING, "first"),
    "word-piece": lambda: tokenizers.word_piece(TRAINING),
}


def in_segments(tokenizer, text: str) -> tuple[list[int], int]:
    """The ids of a text that is cut, and into how many segments."""
    parts = list(segments_of(Document.of_text("here", text), tokenizer))
    assert "".join(part.text for part in parts) == text
    return [i for ids in encode_segments(tokenizer, parts) for i in ids], len(parts)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT", 400)
    monkeypatch.setattr(segments, "CONTEXT", 80)


def check_equal(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    for text in TEXTS:
        ids, count = in_segments(tokenizer, text)
        assert count > 3
        assert ids == tokenizer.encode(text)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_segments_are_those_of_the_whole(tmp_path: Path, family: str) -> None:
    check_equal(tokenizers.save(FAMILIES[family](), tmp_path / "tokenizer.json"))


@pytest.mark.usefixtures("short")
def test_our_own_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(TRAINING, 600), encoding="utf-8")
    check_equal(path)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "identity"}])
def test_sentencepiece_bpe(tmp_path: Path, options) -> None:
    """With the space that it puts first, and with white space collapsed or kept."""
    kept = {"remove_extra_whitespaces": not options}
    model = tokenizers.sentencepiece_model(TRAINING, **options, **kept)
    check_equal(tokenizers.save(model, tmp_path / "tokenizer.model"))


@pytest.mark.usefixtures("short")
def test_sentencepiece_unigram_differs_by_ties_only(tmp_path: Path) -> None:
    """Its scores are summed over the document in 32 bits: where two ways are nearly as good, the
    distance to the beginning decides (docs/data.md says so). The text is the same."""
    model = tokenizers.sentencepiece_model(TRAINING, "unigram")
    tokenizer = load_tokenizer(tokenizers.save(model, tmp_path / "tokenizer.model"))
    for text in TEXTS:
        ids, _ = in_segments(tokenizer, text)
        whole = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode(whole)
        assert abs(len(ids) - len(whole)) <= 0.002 * len(whole)


@pytest.mark.usefixtures("short")
def test_a_word_without_end(tokenizer_json: Path) -> None:
    """Where no border is found the cut is made anyway, and nothing is lost."""
    tokenizer = load_tokenizer(tokenizer_json)
    text = "x" + "qz" * 3000
    ids, count = in_segments(tokenizer, text)
    assert count > 5
    assert tokenizer.decode(ids) == text


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_long_document_in_a_shard(tmp_path: Path, make_config, kind: str) -> None:
    """One BOS, one document, the same tokens, whether it is a file or a row."""
    text = "\ufeff" * (kind == "txt") + noise(5000, 4)
    path = tmp_path / f"long.{kind}"
    if kind == "txt":
        path.write_text(text, encoding="utf-8", newline="")
    else:
        write_jsonl(path, [text])
    validation = write_jsonl(tmp_path / "v.jsonl", ["short"])
    dataset = prepare(make_config(files=[str(path)], validation_files=[str(validation)]))
    tokenizer = dataset.tokenizer
    whole = [tokenizer.bos_id, *tokenizer.encode(text.removeprefix("\ufeff"))]
    np.testing.assert_array_equal(dataset.train.shards[0].read(), whole)
    record = dataset.train.shards[0].record
    assert record.documents == 1
    assert record.text_bytes == len(text.removeprefix("\ufeff").encode())


@pytest.mark.parametrize("split", range(1, 4))
def test_characters_across_blocks(tmp_path: Path, monkeypatch, split: int) -> None:
    """A character whose bytes lie in two blocks is one character, also where it is damaged."""
    from questtrain.data import documents
    from questtrain.data.text_rows import NotUtf8Error

    monkeypatch.setattr(documents, "BLOCK", 4 + split)
    path = tmp_path / "a.txt"
    path.write_bytes("abcd🙂é\r\n🙂".encode())
    (document,) = documents.read_documents(path, TextField("text"))
    assert document.text == "abcd🙂é\r\n🙂" == document.text, "as often as it is asked for"
    path.write_bytes(b"abcd\xf0\x9f\x99")
    (document,) = documents.read_documents(path, TextField("text"))
    with pytest.raises(NotUtf8Error, match="invalid byte 0xf0 at byte offset 4"):
        _ = document.text


MEASURE = """
import resource, subprocess, sys
process = subprocess.run([sys.executable, "-m", "questtrain.cli.main", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(process.returncode)
"""


def test_memory_does_not_grow_with_the_document(tmp_path: Path, tokenizer_json: Path) -> None:
    """A text of 3 MB, which took over 450 MB in one piece."""
    text = noise(20_000, 5)
    (tmp_path / "big.txt").write_text(text * (3_000_000 // len(text.encode())), encoding="utf-8")
    (tmp_path / "v.txt").write_text(text[:5000], encoding="utf-8")
    words = [
        *("data", "prepare", "data=text", f"data.files={tmp_path}/big.txt", "data.num_workers=1"),
        *(f"data.validation_files={tmp_path}/v.txt", f"data.tokenizer={tokenizer_json}"),
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    command = [sys.executable, "-c", MEASURE, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) < 250 * 1024, "KiB of resident memory"
