"""Both kinds of tokenizer behind the interface, and every way to fail to get one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from questtrain.data import load_tokenizer
from questtrain.data.tokenizer_choice import train_bpe
from questtrain.errors import UserError
from tests.data.corpus import sentences

TEXTS = ["the quick brown fox", "naïve — 数学 🙂", "a <s> in the text", "tab\tand\n\nlines", ""]


@pytest.fixture(params=["json", "sentencepiece"])
def path(request: pytest.FixtureRequest, tokenizer_json: Path, sentencepiece_model: Path) -> Path:
    return tokenizer_json if request.param == "json" else sentencepiece_model


def test_round_trip(path: Path) -> None:
    tokenizer = load_tokenizer(str(path))
    batch = tokenizer.encode_batch(TEXTS)
    for text, ids in zip(TEXTS, batch, strict=True):
        assert ids == tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.bos_id not in ids, "a literal <s> is text"
        if path.suffix == ".json":  # SentencePiece normalizes white space
            assert tokenizer.decode(ids) == text
        elif "\n" not in text:
            assert tokenizer.decode(ids).split() == text.split()
    assert tokenizer.decode([tokenizer.bos_id, *batch[0]]) == TEXTS[0]
    assert tokenizer.decode([*batch[0], tokenizer.vocab_size + 3]) == TEXTS[0]
    assert len(tokenizer.sha256) == 64
    assert tokenizer.name == str(path)


def test_folder_and_versioned_model_name(
    tmp_path: Path, tokenizer_json: Path, sentencepiece_model: Path
) -> None:
    assert load_tokenizer(tokenizer_json.parent).vocab_size == 300
    assert load_tokenizer(sentencepiece_model.parent).vocab_size == 350
    versioned = tmp_path / "tokenizer.model.v1"
    versioned.write_bytes(sentencepiece_model.read_bytes())
    assert load_tokenizer(versioned).bos_id == 1


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(train_bpe(sentences(50), 300))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode(sentences(1)[0])) == sentences(1)[0]


def test_bpe_is_deterministic() -> None:
    assert train_bpe(sentences(100), 280) == train_bpe(sentences(100), 280)


def test_no_bos(tmp_path: Path) -> None:
    import tokenizers

    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).save(str(path))
    with pytest.raises(UserError, match=r"no token that begins a document.*data\.bos_token"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{broken", r"tokenizer\.json is damaged"),
        ("tokenizer.model", b"\x00\x01nonsense", r"tokenizer\.model is damaged"),
        ("vocab.txt", b"a b c", "unknown kind of tokenizer file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer file .*nowhere\.json"):
        load_tokenizer(str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.usefixtures("unreachable_hub")
def test_unreachable_hub_fails_fast_and_names_the_alternatives() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"some-org/some-model.*cannot be fetched.*data=stdlib"):
        load_tokenizer("some-org/some-model")
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("unreachable_hub")
def test_bad_hub_name() -> None:
    with pytest.raises(UserError, match="not the name of a hub repository"):
        load_tokenizer("no spaces/in names")
