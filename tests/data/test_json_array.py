"""JSON arrays read an element at a time equal the arrays read whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questtrain.data.documents import read_documents
from questtrain.data.json_array import DamagedArrayError, array_elements
from questtrain.data.text_rows import TextField
from questtrain.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def blocks(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]))
def test_elements_are_those_of_the_whole(values: list, size: int, indent: int | None) -> None:
    text = f" {json.dumps(values, indent=indent)}\n"
    assert list(array_elements(iter(blocks(text, size)))) == values


@given(st.lists(st.fixed_dictionaries({"text": VALUES})), st.integers(1, 40), st.data())
def test_a_part_of_an_array_is_damage(values: list, size: int, data: st.DataObject) -> None:
    """Wherever it is cut; what was whole before the cut is given first."""
    text = json.dumps(values)
    cut = data.draw(st.integers(0, len(text) - 1))
    found = []
    with pytest.raises(DamagedArrayError):
        found.extend(array_elements(iter(blocks(text[:cut], size))))
    assert found == values[: len(found)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2] 3", "more after the array's end at character 8"),
        ("[1 2]", r"expected '\]' at character 4"),
        ("[1,]", "Expecting value at character 4"),
        ('[{"a": 1,, "b": "' + "x" * 100 + '"}]', "at character 10"),
    ],
)
def test_damage_is_where_it_is(text: str, message: str) -> None:
    with pytest.raises(DamagedArrayError, match=message):
        list(array_elements(iter(blocks(text, 3))))


def test_damage_in_the_middle_of_a_large_array_does_not_read_the_rest() -> None:
    read = []

    def rows():
        yield '[{"text": "good"},'
        yield '{"text": bad},'
        while True:
            read.append(1)
            yield '{"text": "good"},' * 100

    with pytest.raises(DamagedArrayError):
        list(array_elements(rows()))
    assert len(read) < 3


def test_a_file_names_the_row(tmp_path: Path, monkeypatch) -> None:
    from questtrain.data import json_rows

    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 50)
    rows = [{"text": f"document {i} é"} for i in range(40)]
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    assert [d.text for d in read_documents(path, TextField("text"))] == [
        row["text"] for row in rows
    ]
    path.write_text(path.read_text(encoding="utf-8").replace('"document 7 é"', "document"))
    with pytest.raises(UserError, match=r"a\.json, row 8 of the array: damaged JSON \(Expecting"):
        list(read_documents(path, TextField("text")))
