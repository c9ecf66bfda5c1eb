"""Text from tokens: whole characters, stop strings, every kind of tokenizer."""

import random

import pytest

from questtrain.data import load_tokenizer
from questtrain.inference.engine.text_stream import TextStream
from questtrain.inference.engine.token_texts import TokenTexts
from tests.data import tokenizers as kinds

SENTENCE = "Hello world, the cat's naïve café 日本 mat 😀.\n"
TEXTS = [SENTENCE * 3] * 4


def sentencepiece(kind):
    return lambda texts: kinds.sentencepiece_model(texts, kind)


MAKERS = {
    "byte level": kinds.byte_bpe,
    "byte level, space first": lambda texts: kinds.byte_bpe(texts, prefix=True),
    "llama 3": kinds.llama3_bpe,
    "llama 2's json": kinds.llama2_bpe,
    "unigram": kinds.unigram,
    "word piece": kinds.word_piece,
    "sentencepiece bpe": sentencepiece("bpe"),
    "sentencepiece unigram": sentencepiece("unigram"),
}
BOS = {"word piece": "[BOS]"}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request, tmp_path_factory):
    made = MAKERS[request.param](TEXTS)
    name = "tokenizer.model" if isinstance(made, bytes) else "tokenizer.json"
    path = kinds.save(made, tmp_path_factory.mktemp("tokenizer") / name)
    return load_tokenizer(path, bos=BOS.get(request.param))


def joined(texts, ids):
    first, *rest = ids
    parts = [texts.bytes_of_first(first), *map(texts.bytes_of, rest)]
    return b"".join(part or b"" for part in parts)


def test_bytes_of_tokens_join_to_the_text(tokenizer):
    texts = TokenTexts(tokenizer)
    for text in (SENTENCE, "x", "naïve 日本 zebra! 😀", "mat mat"):
        ids = tokenizer.encode(text)
        assert joined(texts, ids).decode() == tokenizer.decode(ids)


def test_a_text_goes_on_where_the_prompt_ended(tokenizer):
    texts, (first, *rest) = TokenTexts(tokenizer), tokenizer.encode("Hello world, the mat")
    joined_rest = b"".join(texts.bytes_of(token) or b"" for token in rest).decode()
    assert tokenizer.decode([first]) + joined_rest == tokenizer.decode([first, *rest])


def test_tokens_that_stand_for_no_text(tokenizer):
    texts = TokenTexts(tokenizer)
    assert texts.bytes_of(tokenizer.bos_id) is None
    assert texts.bytes_of(tokenizer.vocab_size + 5) is None


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece bpe"])
def test_a_token_that_is_a_part_of_a_character(kind, tmp_path):
    made = MAKERS[kind](["plain words only. "] * 20)
    name = "tokenizer.model" if isinstance(made, bytes) else "tokenizer.json"
    tokenizer = load_tokenizer(kinds.save(made, tmp_path / name))
    texts, ids = TokenTexts(tokenizer), tokenizer.encode("€")
    parts = [texts.bytes_of(token) for token in ids[-3:]]
    assert parts == [b"\xe2", b"\x82", b"\xac"]
    stream = TextStream()
    assert [stream.add(part) for part in parts] == ["", "", "€"]


def test_a_broken_character_is_told_when_it_is_known_to_be_broken():
    stream = TextStream()
    assert stream.add(b"a\xe2") == "a"
    assert stream.is_within_character
    assert stream.add(b"\x82b") == "\ufffdb"
    assert stream.add(b"\xe2\x82") == ""
    assert stream.add(b"", is_last=True) == "\ufffd"
    assert (stream.length, stream.given) == (4, 4)


def streamed(text, stop, sizes):
    """What a stream gives out for pieces of such sizes; whether it stopped."""
    stream, data, given = TextStream(stop), text.encode(), []
    while data and not stream.stopped:
        size = next(sizes)
        piece, data = data[:size], data[size:]
        given.append(stream.add(piece, is_last=not data))
        assert text.startswith("".join(given))
    assert stream.given == len("".join(given))
    return "".join(given), stream.stopped


def random_sizes(rng, most):
    while True:
        yield rng.randint(1, most)


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (("END",), "some text END more", "some text "),
        (("END",), "some EN text", "some EN text"),
        (("END",), "E EN ENEND", "E EN EN"),
        (("aab",), "aaaab", "aa"),
        (("abab",), "abaabab", "aba"),
        (("aa", "ba"), "cbaa", "c"),
        (("long string", "s"), "a long string", "a long "),
        (("xyz", "yz"), "wxyz", "w"),
        (("日本",), "naïve 日 日本 x", "naïve 日 "),
        (("\n\n", "\n"), "a\nb", "a"),
        (("q",), "", ""),
    ],
)
def test_stop_strings(stop, text, expected):
    """However the text is cut into tokens."""
    for seed in range(8):
        sizes = random_sizes(random.Random(seed), 1 + seed)
        assert streamed(text, stop, sizes) == (expected, expected != text)


def test_only_what_a_stop_string_can_begin_in_is_held_back():
    stream = TextStream(("END", "\nUser:"))
    assert stream.add(b"the E") == "the "
    assert stream.add(b"N") == ""
    assert stream.add(b"T\nU") == "ENT"
    assert stream.add(b"se") == ""
    assert stream.add(b"d.") == "\nUsed."


def test_stop_strings_of_random_texts():
    """Against a search of the whole text, for strings that overlap themselves and each other."""
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab", k=30))
        stop = tuple("".join(rng.choices("ab", k=rng.randrange(1, 7))) for _ in range(3))
        ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
        expected = text[: sum(min(ends))] if ends else text
        assert streamed(text, stop, random_sizes(rng, 4)) == (expected, bool(ends))
