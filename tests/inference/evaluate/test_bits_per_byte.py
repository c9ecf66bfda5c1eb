"""Bits per byte: of a plain fp64 model, token by token, and of windows that score each once."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pyarrow
import pytest
from pyarrow import parquet

from questtrain.data.text_rows import TextField
from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Asking
from questtrain.inference.evaluate.bits_per_byte import RightAnswers, read_texts, windows
from tests.inference.evaluate.models import (
    LENGTH,
    Plain,
    opinionated_model,
    tokenizer_of_settings,
)

TEXTS = ["def value(self):\n    return self\n", "ü – import 漢字 from 漢字", "x"]


@pytest.fixture(scope="module")
def trained(compose, corpus):
    return opinionated_model(compose, tokenizer_of_settings(corpus))


@pytest.fixture(scope="module")
def plain(trained):
    return Plain(trained)


def measured(trained, pattern, **settings):
    asking = Asking(trained, **settings)
    (result,) = read_texts(str(pattern), TextField("text")).evaluate(asking).tasks.values()
    return result


def bits(plain: Plain, text: str) -> float:
    return -sum(plain.logprobs(plain.ids(text))[0]) / math.log(2)


def test_documents_of_every_format_count_their_bytes(trained, plain, tmp_path):
    total, size = sum(bits(plain, text) for text in TEXTS), sum(len(t.encode()) for t in TEXTS)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, " \n"])
    (tmp_path / "rows.jsonl").write_text(rows)
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "table.parquet")
    (tmp_path / "files").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "files" / f"{number}.txt").write_text(text)
    for pattern, name in (
        ("rows.jsonl", "rows"),
        ("table.parquet", "table"),
        ("files/*.txt", "files"),
    ):
        result = measured(trained, tmp_path / pattern)
        assert result.metrics["bpb"].value == pytest.approx(total / size, rel=1e-5), pattern
        assert (result.column, result.samples, result.total) == (f"bpb.{name}", 3, 3)


@pytest.mark.parametrize("stride", [None, 1, 7, LENGTH])
def test_a_long_document_is_scored_once_by_the_trained_window(trained, plain, tmp_path, stride):
    """Each token by a window of its own, as the definition has it."""
    text = "import os\nclass Path:\n    def open(self, name):\n        return self.list[name]\n" * 6
    (tmp_path / "long.txt").write_text(text)
    ids = plain.ids(text)
    assert len(ids) > 3 * LENGTH
    step, total = stride or LENGTH // 2, 0.0
    for place in range(1, len(ids)):
        end = LENGTH  # of the window's inputs, the last of which predicts the window's last token
        while end < place:
            end += step
        inputs = ids[max(0, min(end, len(ids) - 1) - LENGTH) : place]
        total -= plain.logprobs([*inputs, ids[place]])[0][-1]
    expected = total / math.log(2) / len(text.encode())
    result = measured(trained, tmp_path / "long.txt", stride=stride)
    assert result.metrics["bpb"].value == pytest.approx(expected, rel=1e-5)
    assert (result.stride, result.files) == (step, [str(tmp_path / "long.txt")])
    assert result.column == ("bpb.long" if stride is None else f"bpb.long_stride{stride}")


def test_the_default_stride_has_the_column_of_the_default_and_a_longer_one_is_refused(
    trained, tmp_path
):
    (tmp_path / "a.txt").write_text("import os")
    assert measured(trained, tmp_path / "a.txt", stride=LENGTH // 2).column == "bpb.a"
    with pytest.raises(UserError, match=rf"stride={LENGTH + 1} would pass over .* hold {LENGTH}"):
        Asking(trained, stride=LENGTH + 1)


@pytest.mark.parametrize("count", [1, 2, 10, 11, 12, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 10])
def test_windows_cover_every_token_once_with_the_stated_context(count, stride):
    tokens, length = list(range(count)), 10
    found = list(windows(iter(tokens), length, stride))
    assert [token for _, new in found for token in new] == tokens[1:]
    for number, (context, new) in enumerate(found):
        assert len(context) + len(new) <= length + 1
        assert [*context, *new] == tokens[context[0] : context[0] + len(context) + len(new)]
        if number:
            assert len(context) >= length + 1 - stride


def test_a_limit_takes_the_first_documents(trained, plain, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    result = measured(trained, tmp_path / "rows.jsonl", limit=1)
    assert result.metrics["bpb"].value == pytest.approx(
        bits(plain, TEXTS[0]) / len(TEXTS[0].encode()), rel=1e-5
    )
    assert result.metrics["bpb"].stderr is None
    assert (result.column, result.samples, result.total) == ("bpb.rows_first1", 1, 3)


def test_the_standard_error_is_that_of_a_ratio(trained, plain, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    own = [(bits(plain, t), len(t.encode())) for t in TEXTS]
    ratio = sum(b for b, _ in own) / sum(s for _, s in own)
    off = sum((b - ratio * s) ** 2 for b, s in own) / 2
    expected = math.sqrt(off / 3) / fmean(s for _, s in own)
    result = measured(trained, tmp_path / "rows.jsonl")
    assert result.metrics["bpb"].stderr == pytest.approx(expected, rel=1e-4)


def test_right_answers_are_averaged_over_the_questions(trained, plain, tmp_path):
    """Over the bytes of the answer and its space; what stands in the question costs nothing."""
    rows = [
        {"query": "def value(self): ", "choices": ["return", "class"], "gold": 0},
        {"query": "import", "choices": ["x", "漢字 file", "x y"], "gold": 1},
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = []
    for question, answer in (("def value(self):", " return"), ("import", " 漢字 file")):
        asked, whole = plain.ids(question), plain.ids(question + answer)
        assert whole[: len(asked)] == asked
        logprob = sum(plain.logprobs(whole)[0][len(asked) - 1 :])
        expected.append(-logprob / math.log(2) / len(answer.encode()))
    assert isinstance(read_texts(str(tmp_path / "quiz.jsonl"), TextField("text")), RightAnswers)
    result = measured(trained, tmp_path / "quiz.jsonl")
    assert result.metrics["bpb"].value == pytest.approx(fmean(expected), rel=1e-5)
    assert result.column == "bpb.quiz"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n{"body": "x"}\n',
            "no field 'text'; choose text_field from body",
        ),
        ("a.jsonl", '{"text": {"b": "x"}}\n', "the text column with text_field=…, one of text.b"),
        ("a.jsonl", '{"text": "x"}\n{"text"', "line 2: damaged JSON"),
        ("a.json", '[{"text": "x"}, {"text"', "row 2 of the array: damaged JSON"),
        ("a.txt", b"ok\xff", "not UTF-8"),
        ("a.txt", " \n", "no text"),
        ("a.bin", "x", "unknown kind of data file"),
        ("a.parquet", "no parquet", "a.parquet"),
    ],
)
def test_bad_files_are_refused_before_anything_is_scored(tmp_path, name, content, part):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=part) as caught:
        read_texts(str(path), TextField("text", setting="text_field"))
    for of_training in ("data.", "data=", "prepared"):
        assert of_training not in str(caught.value).replace(str(tmp_path), "")


def test_a_document_that_the_tokenizer_cannot_encode_is_named(trained, tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("some text")

    def fails(texts):
        raise ValueError("no token for it")

    monkeypatch.setattr(trained.tokenizer, "_encode_batch", fails)
    with pytest.raises(UserError, match=r"cannot encode .*book\.txt: no token for it\. Leave that"):
        measured(trained, tmp_path / "book.txt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        read_texts(str(tmp_path / "nothing.txt"), TextField("text"))
