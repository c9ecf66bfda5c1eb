"""Which token begins documents, and that no text can make it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import load_tokenizer, open_dataset, prepare
from questtrain.errors import UserError
from tests.data import tokenizers
from tests.data.corpus import documents_of, sentences, write_jsonl

TEXTS = sentences(60)
GEMMA = ("<pad>", "<eos>", "<bos>")
DEEPSEEK = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"


def template(token: str, *ids: int) -> dict[str, object]:
    """A post-processor that puts ``token`` first."""
    single = [
        {"SpecialToken": {"id": token, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    special = {token: {"id": token, "ids": list(ids), "tokens": [token]}}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": special,
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SEQUENCE = {"type": "Sequence", "processors": [BYTES, template("<bos>", 2)]}
ROBERTA = {
    **{"type": "RobertaProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2]},
    **{"trim_offsets": True, "add_prefix_space": True},
}


def with_html(tokenizer, *tags: str):
    """Gemma's layout: tags are tokens of their own, and no special ones."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


@pytest.mark.parametrize("post_processor", [template("<bos>", 2), SEQUENCE, ROBERTA, None, BYTES])
def test_the_tokenizers_own_comes_before_any_spelling(tmp_path: Path, post_processor) -> None:
    """Without a post-processor that says it, a special token comes before a tag."""
    tokenizer = with_html(tokenizers.byte_bpe(TEXTS, GEMMA), "<s>", "</s>", "<b>")
    path = tmp_path / "tokenizer.json"
    tokenizers.save(tokenizer, path, post_processor=post_processor)
    loaded = load_tokenizer(path)
    assert loaded.bos_id == 2
    assert tokenizer.token_to_id("<s>") in loaded.encode("a <s> tag"), "a tag is what it was"


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"bos_token": "<|x|>"}, "<|x|>"),
        ({"bos_token": {"content": "<|x|>", "lstrip": False}}, "<|x|>"),
        ({"bos_token": "<|x|>", "add_bos_token": False}, "<|x|>"),
        ({"bos_token": None, "eos_token": "<|x|>"}, "<s>"),
        ({"bos_token": "<absent>"}, "<s>"),
        ([], "<s>"),
    ],
)
def test_tokenizer_config_comes_before_the_spellings(tmp_path: Path, config, bos: str) -> None:
    tokenizer = tokenizers.byte_bpe(TEXTS, ("<s>", "<|x|>"))
    tokenizers.save(tokenizer, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).bos_id == tokenizer.token_to_id(bos)


def test_the_order(tmp_path: Path) -> None:
    """Setting, post-processor, tokenizer_config.json, spelling."""
    path = tmp_path / "tokenizer.json"
    tokenizer = tokenizers.byte_bpe(TEXTS, ("<s>", "<config>", "<post>", "<setting>"))
    assert load_tokenizer(tokenizers.save(tokenizer, path)).bos_id == 0
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<config>"}')
    assert load_tokenizer(path).bos_id == 1
    tokenizers.save(tokenizer, path, post_processor=template("<post>", 2))
    assert load_tokenizer(path).bos_id == 2
    assert load_tokenizer(path, bos="<setting>").bos_id == 3


def test_sentencepiece(tmp_path: Path) -> None:
    """Its own bos_id; without one tokenizer_config.json; the setting before all."""
    options = {"user_defined_symbols": ["<doc>", "<s>"], "bos_id": -1}
    model = tokenizers.sentencepiece_model(TEXTS, **options)
    path = tokenizers.save(model, tmp_path / "tokenizer.model")
    pieces = {"<s>": load_tokenizer(path).bos_id, "<doc>": load_tokenizer(path, bos="<doc>").bos_id}
    assert len(set(pieces.values())) == 2
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<doc>"}')
    assert load_tokenizer(path).bos_id == pieces["<doc>"]
    own = tokenizers.save(tokenizers.sentencepiece_model(TEXTS), tmp_path / "own.model")
    assert load_tokenizer(own).bos_id == 1


def test_an_unknown_spelling_needs_no_list(tmp_path: Path, make_config) -> None:
    path = tmp_path / "t" / "tokenizer.json"
    tokenizers.save(tokenizers.byte_bpe(TEXTS, ("<end>", DEEPSEEK)), path)
    files = [str(write_jsonl(tmp_path / "a.jsonl", TEXTS))]
    with pytest.raises(UserError, match=rf"Name one .* data\.bos_token=….*<end>, {DEEPSEEK}"):
        prepare(make_config(files=files, tokenizer=str(path)))
    named = prepare(make_config(files=files, tokenizer=str(path), bos_token=DEEPSEEK))
    assert named.manifest.bos_id == 1
    assert open_dataset(named.folder).tokenizer.bos_id == 1, "the folder knows it by itself"
    other = prepare(make_config(files=files, tokenizer=str(path), bos_token="<end>"))
    assert other.folder != named.folder
    with pytest.raises(UserError, match=r"data\.bos_token='<ende>' is no token .*mean '<end>'\?"):
        prepare(make_config(files=files, tokenizer=str(path), bos_token="<ende>"))


def test_a_damaged_tokenizer_config(tmp_path: Path) -> None:
    tokenizers.save(tokenizers.byte_bpe(TEXTS, ("<s>",)), tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read.*data\.bos_token"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, bos="<s>").bos_id == 0


def test_a_folder_of_another_tokenizer(tokenizer_json: Path, sentencepiece_model: Path) -> None:
    for path in (tokenizer_json, sentencepiece_model):
        with pytest.raises(UserError, match=r"has no token 9999, which began the documents"):
            load_tokenizer(path, bos=9999)


def not_special(tokenizer):
    """As some published files have it: BOS is an added token, not marked as special."""
    content = json.loads(tokenizer.to_str())
    return {"added_tokens": [entry | {"special": False} for entry in content["added_tokens"]]}


def word_level():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(["<unk>", "<s>", "<", "s>", *" ".join(LITERAL).split()])
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


LITERAL = ["the <s> tag", "<s>", "<s> <s><s> twice", "was <s>old</s> price " * 40, "no tag at all"]
MAKERS = {
    "special": lambda: (tokenizers.byte_bpe(LITERAL), {}),
    "not special": lambda: ((made := tokenizers.byte_bpe(LITERAL)), not_special(made)),
    "unigram": lambda: (tokenizers.unigram(TEXTS + LITERAL), {}),
    "words": lambda: (word_level(), {}),
    "sentencepiece": lambda: (tokenizers.sentencepiece_model(TEXTS), {}),
    "user-defined": lambda: (
        tokenizers.sentencepiece_model(TEXTS, user_defined_symbols=["<s>"], bos_id=-1),
        {},
    ),
    "user-defined unigram": lambda: (
        tokenizers.sentencepiece_model(
            TEXTS, "unigram", user_defined_symbols=["<s>"], bos_id=-1, vocab_size=320
        ),
        {},
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_no_text_makes_bos(tmp_path: Path, make_config, kind: str) -> None:
    """As many BOS as documents; a literal one is text, at worst with a space in it."""
    made, changes = MAKERS[kind]()
    name = "tokenizer.model" if isinstance(made, bytes) else "tokenizer.json"
    path = tokenizers.save(made, tmp_path / "t" / name, **changes)
    files = {
        "files": [str(write_jsonl(tmp_path / "a.jsonl", LITERAL))],
        "validation_files": [str(write_jsonl(tmp_path / "v.jsonl", LITERAL))],
    }
    dataset = prepare(make_config(tokenizer=str(path), **files))
    tokens = dataset.train.shards[0].read()
    assert np.count_nonzero(tokens == dataset.manifest.bos_id) == len(LITERAL)
    if kind != "words":
        found = ["".join(text.split()) for text in documents_of(dataset, dataset.train)]
        assert found == ["".join(text.split()) for text in LITERAL]


def test_a_tokenizer_whose_unknown_token_is_bos(tmp_path: Path, make_config) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tokenizers.save(tokenizer, tmp_path / "t" / "tokenizer.json")
    files = [str(write_jsonl(tmp_path / "x.jsonl", ["a a", "a b"]))]
    with pytest.raises(
        UserError, match=r"x\.jsonl, line 2: .* of the character 'b'.* another data\.bos"
    ):
        prepare(make_config(files=files, tokenizer=str(path)))


def test_a_run_whose_tokenizer_names_no_bos_says_where_that_is_set(tmp_path: Path, compose) -> None:
    """Who uses a run cannot give it data.bos_token."""
    from tokenizers import Tokenizer, models

    from questtrain.inference.load import tokenizer_of

    tokenizers.save(
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), tmp_path / "tokenizer.json"
    )
    with pytest.raises(UserError, match=r"stands in .*config\.yaml\.$"):
        tokenizer_of(tmp_path, compose("nano"))
