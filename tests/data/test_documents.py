"""The formats of documents beyond the plain ones: parquet, compression, nested fields."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from questtrain.data import prepare
from questtrain.data.documents import check_suffix, read_documents
from questtrain.data.text_rows import NotUtf8Error, TextField
from questtrain.errors import UserError
from tests.data.corpus import all_documents, sentences

DOCUMENTS = sentences(30)


def zstd(data: bytes) -> bytes:
    import pyarrow

    compressed: bytes = pyarrow.compress(data, codec="zstd", asbytes=True)
    return compressed


def texts(path: Path, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, TextField(text_field))]


def write_table(
    path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None
) -> Path:
    """A parquet file; ``features`` is the library ``datasets``' description of its columns."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if features is not None:
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    parquet.write_table(table, path, row_group_size=7)
    return path


def other_columns() -> dict[str, tuple[Any, dict[str, Any] | None]]:
    """Columns that nobody asks for, and what `datasets` calls them."""
    import pyarrow

    count = len(DOCUMENTS)
    blob = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    audio = pyarrow.array([{"bytes": b"RIFF", "path": None}] * count, blob)
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.string())
    return {
        "audio": (audio, {"sampling_rate": 16000, "_type": "Audio"}),
        "map": (pyarrow.array([[("a", "b")]] * count, pairs), None),
        "unknown feature": (pyarrow.array([1] * count), {"_type": "FeatureOfTheFuture"}),
        "list": (pyarrow.array([["x", "y"]] * count), None),
        "nothing": (pyarrow.nulls(count), None),
        "not UTF-8": (pyarrow.array([b"\xff"] * count), None),
        "decimal": (pyarrow.array([1] * count).cast(pyarrow.decimal128(30, 2)), None),
    }


@pytest.mark.parametrize("name", other_columns())
def test_only_the_text_column_of_parquet_is_read(tmp_path: Path, make_config, name: str) -> None:
    column, feature = other_columns()[name]
    features = {"text": {"dtype": "string", "_type": "Value"}, "other": feature}
    path = write_table(
        tmp_path / "a.parquet",
        {"other": column, "text": DOCUMENTS},
        features if feature else None,
    )
    assert all_documents(prepare(make_config(files=[str(path)]))) == sorted(DOCUMENTS)


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary", "binary"])
def test_text_of_every_type(tmp_path: Path, kind: str) -> None:
    import pyarrow

    text = pyarrow.array([*DOCUMENTS, None])
    match kind:
        case "dictionary":
            column = text.dictionary_encode()
        case _:
            column = text.cast(getattr(pyarrow, kind)())
    assert texts(write_table(tmp_path / "a.parquet", {"text": column})) == [*DOCUMENTS, ""]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"text": [b"fine", b"caf\xe9"]})
    with pytest.raises(NotUtf8Error, match=r"a\.parquet, row 2: .* not UTF-8 text"):
        texts(path)


def test_a_part_of_no_rows(tmp_path: Path, make_config) -> None:
    """Writers in parts leave some; only when nothing is left is it an error."""
    import pyarrow

    empty = write_table(tmp_path / "part-1.parquet", {"text": pyarrow.array([], pyarrow.string())})
    write_table(tmp_path / "part-0.parquet", {"text": DOCUMENTS})
    dataset = prepare(make_config(files=[f"{tmp_path}/*.parquet"]))
    assert all_documents(dataset) == sorted(DOCUMENTS)
    assert dataset.manifest.skipped == {"file of no rows": 1}
    with pytest.raises(UserError, match=r"holds no text: .* \(1 file of no rows\)"):
        prepare(make_config(files=[str(empty)]))


def test_everything_is_left_out(tmp_path: Path, make_config) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n{"text": " \\n"}\n')
    with pytest.raises(UserError, match=r"data=text holds no text: .* \(3 empty\).*text_field"):
        prepare(make_config(files=[f"{tmp_path}/a.jsonl"]))


NESTED = [{"doc": {"body": text, "meta": {"lang": "en"}}, "id": 1} for text in DOCUMENTS]


@pytest.mark.parametrize("kind", ["jsonl", "json", "ndjson.gz", "jsonl.zst", "parquet"])
def test_nested_fields(tmp_path: Path, make_config, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(NESTED), path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in NESTED)
        data = (json.dumps(NESTED) if kind == "json" else lines).encode()
        compress = {".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)
        path.write_bytes(compress(data))
    config = make_config(files=[str(path)], text_field="doc.body")
    assert all_documents(prepare(config)) == sorted(DOCUMENTS)
    with pytest.raises(UserError, match=r"no field 'doc\.bdy'.* Did you mean 'doc\.body'\?"):
        texts(path, "doc.bdy")
    with pytest.raises(UserError, match=r"'doc' holds an object, not text.* doc\.body"):
        texts(path, "doc")
    assert texts(path, "doc.meta.lang") == ["en"] * len(DOCUMENTS)


def test_a_dotted_name_is_a_name_first(tmp_path: Path) -> None:
    row = {"a": {"b": "nested"}, "a.b": "dotted"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({"a": None}) + "\n")
    assert texts(path, "a.b") == ["dotted", ""], "null on the way is an empty document"
    table = write_table(tmp_path / "a.parquet", {"a": [{"b": "nested"}], "a.b": ["dotted"]})
    assert texts(table, "a.b") == ["dotted"]
    nulls = write_table(tmp_path / "b.parquet", {"a": [{"b": "x"}, None, {"b": None}]})
    assert texts(nulls, "a.b") == ["x", "", ""]


@pytest.mark.parametrize("name", ["jsonl", "ndjson", "json"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_json_lines_by_every_name(tmp_path: Path, name: str, compression: str) -> None:
    """Several compressed streams one after another are one file, as tools that append leave it."""
    halves = [
        "".join(json.dumps({"text": text}) + "\n" for text in half).encode()
        for half in (DOCUMENTS[:13], DOCUMENTS[13:])
    ]
    compress = {".gz": gzip.compress, ".zst": zstd}.get(compression, bytes)
    path = tmp_path / f"A.{name}{compression}".upper()
    path.write_bytes(b"".join(map(compress, halves)))
    check_suffix(path)
    assert texts(path) == DOCUMENTS


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_download_cut_short(tmp_path: Path, compression: str) -> None:
    data = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
    whole = (gzip.compress if compression == ".gz" else zstd)(data)
    path = tmp_path / f"a.jsonl{compression}"
    for content in (whole[:-20], b"not compressed at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read|is damaged or not completely downloaded"):
            texts(path)


def test_json_nested_beyond_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ' + "[" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: "):
        texts(path)


def arrow_file(folder: Path, columns: dict[str, list[Any]]) -> Path:
    """The file that `datasets` leaves."""
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arrow_files_of_datasets(tmp_path: Path) -> None:
    texts = ["one", "zwei ✓", "", "vier"]
    file = arrow_file(tmp_path / "saved", {"text": texts, "id": [1, 2, 3, 4]})
    assert [document.text for document in read_documents(file, TextField("text"))] == texts
    nested = arrow_file(tmp_path / "nested", {"doc": [{"body": text} for text in texts]})
    assert [document.text for document in read_documents(nested, TextField("doc.body"))] == texts
    with pytest.raises(UserError, match=r"no field 'txt'; choose data.text_field from text, id"):
        list(read_documents(file, TextField("txt")))
    with pytest.raises(UserError, match=r"row 1: the field 'id' holds int, not text"):
        list(read_documents(file, TextField("id")))
    damaged = tmp_path / "damaged.arrow"
    damaged.write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"damaged\.arrow is damaged or no Arrow file"):
        list(read_documents(damaged, TextField("text")))
    with pytest.raises(UserError, match=r"cannot read the data file .*missing\.arrow"):
        list(read_documents(tmp_path / "missing.arrow", TextField("text")))
