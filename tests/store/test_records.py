"""Small JSON files read back: of every value the type and the bounds, in one message."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from questtrain.store.json_file import Count, DamagedJson, NotNegative, read_json
from questtrain.store.metric_rows import read_metric_rows


@dataclass(frozen=True)
class Part:
    size: Count
    kind: Literal["train", "validation"]


@dataclass(frozen=True)
class Whole:
    name: str
    loss: NotNegative
    done: bool
    note: str | None
    parts: list[Part]
    words: tuple[str, ...]
    counts: dict[str, int | None]
    source: dict[str, Any]
    tries: Count = 1
    extra: dict[str, int] = field(default_factory=dict)


GOOD = {
    "name": "a",
    "loss": 2,
    "done": True,
    "note": None,
    "parts": [{"size": 3, "kind": "train"}],
    "words": ["x", "y"],
    "counts": {"a": 1, "b": None},
    "source": {"anything": [1, "b"]},
    "unknown": 1,
}


def read(tmp_path, content):
    path = tmp_path / "whole.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_json(path, Whole, "Make it anew.")


def test_a_good_one_is_what_was_written(tmp_path):
    whole = read(tmp_path, GOOD)
    assert whole == Whole(
        "a", 2.0, True, None, [Part(3, "train")], ("x", "y"), {"a": 1, "b": None},
        {"anything": [1, "b"]},
    )  # fmt: skip
    assert type(whole.loss) is float


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 5}, "'name' holds 5; it should be a valid string"),
        ({"name": None}, "'name' holds None; it should be a valid string"),
        ({"loss": "2"}, "'loss' holds '2'; it should be a valid number"),
        ({"loss": True}, "'loss' holds True; it should be a valid number"),
        ({"loss": float("nan")}, "'loss' holds nan; it should be a finite number"),
        ({"loss": float("inf")}, "'loss' holds inf; it should be a finite number"),
        ({"loss": -1.0}, "'loss' holds -1.0; it should be greater than or equal to 0"),
        ({"loss": 10**400}, "…; it should be a finite number"),
        ({"done": 1}, "'done' holds 1; it should be a valid boolean"),
        ({"note": 5}, "'note' holds 5; it should be a valid string"),
        ({"tries": 1.5}, "'tries' holds 1.5; it should be a valid integer"),
        ({"tries": -1}, "'tries' holds -1; it should be greater than or equal to 0"),
        ({"parts": {}}, "'parts' holds {}; it should be a valid array"),
        ({"parts": [5]}, "parts: '0' holds 5; it should be an object"),
        ({"parts": [{"size": 3}]}, "parts.0: 'kind' is missing"),
        ({"parts": [{"size": "3", "kind": "train"}]}, "parts.0: 'size' holds '3'"),
        (
            {"parts": [{"size": 3, "kind": "test"}]},
            "parts.0: 'kind' holds 'test'; it should be 'train' or 'validation'",
        ),
        ({"words": ["x", 1]}, "words: '1' holds 1; it should be a valid string"),
        ({"counts": {"a": "many"}}, "counts: 'a' holds 'many'; it should be a valid integer"),
        ({"source": None}, "'source' holds None; it should be an object"),
    ],
)
def test_a_damaged_field_is_named(tmp_path, change, problem):
    with pytest.raises(DamagedJson) as damaged:
        read(tmp_path, GOOD | change)
    assert problem in str(damaged.value)
    assert str(damaged.value).startswith(f"{tmp_path / 'whole.json'} is damaged: ")
    assert str(damaged.value).endswith(". Make it anew.")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "5", '"x"', '{"a": 1}{"a": 2}', "\x00" * 40),
        *("[" * 100_000, '{"source": ' + "[" * 100_000, '{"loss": ' + "9" * 10_000 + "}"),
    ],
)
def test_what_holds_no_object(tmp_path, text):
    with pytest.raises(DamagedJson, match=r"whole\.json is damaged"):
        read(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(DamagedJson, match="cannot be read as JSON"):
        read_json(path, Whole)


def test_damaged_rows_of_metrics_are_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    assert read_metric_rows(path) == []
    good = [{"step": 1, "train_loss": 5.0, "mfu": None}, {"step": 2, "val_loss": 4}]
    bad = [
        '{"train_loss": 3.0}',
        '{"step": "3", "train_loss": 3.0}',
        '{"step": -1}',
        '{"step": true}',
        '{"step": 3, "train_loss": "low"}',
        '{"step": 3, "train_loss": NaN}',
        '{"step": 3, "tokens": [1]}',
        "[]",
        "nonsense",
    ]
    lines = [json.dumps(good[0]), *bad, json.dumps(good[1]), '{"step": 4, "tra']
    path.write_text("\n".join(lines))
    assert read_metric_rows(path) == good
    assert f"{path}: {len(bad)} damaged rows are left out." in caplog.text


def test_a_torn_end_alone_is_no_damage(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_metric_rows(path) == [{"step": 1}]
    assert caplog.text == ""
