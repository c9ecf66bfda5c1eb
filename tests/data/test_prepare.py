"""From documents to shards and back: every format, the split, the growth, the reuse."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import Loader, open_dataset, prepare, sources
from questtrain.data.inspect import describe
from tests.data.corpus import all_documents, documents_of, sentences, write_jsonl

DOCUMENTS = sentences(60)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"url": ["u"] * len(DOCUMENTS), "text": DOCUMENTS})
    parquet.write_table(table, path, row_group_size=7)


def write_corpus(folder: Path, kind: str) -> str:
    """Write DOCUMENTS in a format; returns the glob of the files."""
    folder.mkdir()
    match kind:
        case "txt":
            for number, document in enumerate(DOCUMENTS):
                path = folder / f"{number % 3}" / f"{number}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(document)
        case "json":
            (folder / "a.json").write_text(json.dumps([{"text": d} for d in DOCUMENTS], indent=1))
        case "parquet":
            write_parquet(folder / "a.parquet")
        case _:
            write_jsonl(folder / f"a.{kind}", DOCUMENTS[:20])
            write_jsonl(folder / f"b.{kind}", DOCUMENTS[20:])
    return f"{folder}/**/*.{kind}"


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "jsonl.gz", "json.gz", "parquet"])
def test_round_trip(tmp_path: Path, make_config, kind: str) -> None:
    config = make_config(files=write_corpus(tmp_path / "corpus", kind))  # a string is one pattern
    dataset = prepare(config)
    assert all_documents(dataset) == sorted(DOCUMENTS)
    assert dataset.manifest.complete
    assert dataset.manifest.totals["train"]["documents"] == len(
        documents_of(dataset, dataset.train)
    )
    assert dataset.manifest.totals["validation"]["text_bytes"] == sum(
        len(d.encode()) for d in documents_of(dataset, dataset.validation)
    )
    dataset.verify()


def test_sentencepiece(tmp_path: Path, make_config, sentencepiece_model: Path) -> None:
    files = [str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS))]
    dataset = prepare(make_config(files=files, tokenizer=str(sentencepiece_model)))
    assert all_documents(dataset) == sorted(DOCUMENTS)
    assert (dataset.folder / "tokenizer.model").exists()
    sentencepiece_copy = open_dataset(dataset.folder).tokenizer
    assert sentencepiece_copy.sha256 == dataset.manifest.tokenizer["sha256"]


def test_stdlib(tmp_path: Path, make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "lib"
    (root / "pkg").mkdir(parents=True)
    (root / "site-packages").mkdir()
    (root / "site-packages" / "foreign.py").write_text("foreign = 1")
    (root / "pkg" / "__init__.py").write_text("")
    (root / "pkg" / "latin.py").write_bytes(b"# caf\xe9")
    for number, document in enumerate(DOCUMENTS):
        (root / "pkg" / f"m{number}.py").write_text(document)
    monkeypatch.setattr(sources, "stdlib_root", lambda: root)
    config = make_config("stdlib", tokenizer=None, vocab_size=300)
    dataset = prepare(config)
    assert all_documents(dataset) == sorted(DOCUMENTS)
    assert dataset.manifest.skipped == {"empty": 1, "not UTF-8": 1}
    assert dataset.vocab_size == dataset.tokenizer.vocab_size == 300
    assert dataset.tokenizer.name == "stdlib-bpe-300"


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_tokens(tmp_path: Path, make_config, dtype: str) -> None:
    vocab_size = 300 if dtype == "<u2" else 70_000
    ids = np.arange(1000) % 290
    ids.astype(dtype).tofile(tmp_path / "train.bin")
    ids[:100].astype(dtype).tofile(tmp_path / "val.bin")
    config = make_config(
        "tokens",
        files=[str(tmp_path / "train.bin")],
        validation_files=[str(tmp_path / "val.bin")],
        vocab_size=vocab_size,
    )
    dataset = prepare(config)
    assert dataset.vocab_size == vocab_size
    assert dataset.train.num_tokens == 1000
    np.testing.assert_array_equal(dataset.validation.shards[0].read(), ids[:100])
    assert not list(dataset.folder.glob("*.bin")), "the files are used where they are"
    dataset.verify()
    assert describe(dataset)["train"]["documents"] is None


def test_identical_documents_fall_on_the_same_side(tmp_path: Path, make_config) -> None:
    files = [
        str(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS * 2)),
        str(write_jsonl(tmp_path / "b.jsonl", reversed(DOCUMENTS))),
    ]
    dataset = prepare(make_config(files=files))
    train = Counter(documents_of(dataset, dataset.train))
    validation = Counter(documents_of(dataset, dataset.validation))
    assert not train.keys() & validation.keys()
    assert set((train + validation).values()) == {3}
    assert 2 <= len(validation) <= 25  # 12 expected of 60


def test_validation_files(tmp_path: Path, make_config) -> None:
    held_out = sentences(5, seed=9)
    write_jsonl(tmp_path / "corpus" / "a.jsonl", DOCUMENTS)
    validation = write_jsonl(tmp_path / "corpus" / "val.jsonl", held_out)
    config = make_config(files=f"{tmp_path}/corpus/*.jsonl", validation_files=[str(validation)])
    dataset = prepare(config)
    assert documents_of(dataset, dataset.train) == DOCUMENTS
    assert documents_of(dataset, dataset.validation) == held_out


def test_odd_documents(tmp_path: Path, make_config) -> None:
    rows = [{"text": " \n"}, {"text": None}, {"text": "half \ud800 pair"}, {"text": "<s> is text"}]
    lines = [json.dumps(row) for row in rows] + ["", '\ufeff{"text": "x"}'.lstrip("\ufeff")]
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    val = write_jsonl(tmp_path / "val.jsonl", ["v"])
    dataset = prepare(make_config(files=[str(path)], validation_files=[str(val)]))
    assert documents_of(dataset, dataset.train) == ["half ? pair", "<s> is text", "x"]
    assert dataset.manifest.skipped == {"empty": 2}


def test_prepared_data_is_reused(tmp_path: Path, make_config) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    first = prepare(make_config(files=[str(path)]))
    stamps = {f: f.stat().st_mtime_ns for f in first.folder.iterdir()}
    again = prepare(make_config(files=[str(path)]), tokens_needed=10)
    assert again.folder == first.folder
    assert {f: f.stat().st_mtime_ns for f in first.folder.iterdir()} == stamps
    assert again.train.num_tokens == first.train.num_tokens, "text does not depend on the run"
    write_jsonl(path, DOCUMENTS[:50])
    changed = prepare(make_config(files=[str(path)]))
    assert changed.folder != first.folder
    assert prepare(make_config(files=[str(path)], validation_fraction=0.3)).folder not in (
        first.folder,
        changed.folder,
    )


def test_max_tokens(tmp_path: Path, make_config) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    whole = prepare(make_config(files=[str(path)]))
    cut = prepare(make_config(files=[str(path)], max_tokens=123))
    assert cut.train.num_tokens == 123
    assert cut.folder == whole.folder
    np.testing.assert_array_equal(cut.train.shards[0].read(), whole.train.shards[0].read(0, 123))


def test_a_missing_shard_is_made_again(tmp_path: Path, make_config) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    dataset = prepare(make_config(files=[str(path)]))
    shard = dataset.train.shards[0].path
    content = shard.read_bytes()
    shard.unlink()
    prepare(make_config(files=[str(path)])).verify()
    assert shard.read_bytes() == content


def test_number_of_workers_changes_nothing(tmp_path: Path, make_config, monkeypatch) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", DOCUMENTS[number::3])
    files = [f"{tmp_path}/*.jsonl"]
    one = prepare(make_config(files=files))
    two = prepare(make_config(files=files, num_workers=2, cache_dir=str(tmp_path / "other")))
    assert len(one.train.shards) == 3
    assert one.manifest == two.manifest
    two.verify()


def test_small_files_are_gathered_and_large_ones_stand_alone(
    tmp_path: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1000)
    (tmp_path / "large.txt").write_text("x" * 2000)
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"document {number}")
    pieces = sources.list_source(make_config(files=[f"{tmp_path}/*.txt"])).pieces
    assert [len(piece.files) for piece in pieces] == [20, 1]
    assert pieces[1].files[0].endswith("large.txt")


def test_unigram_entropy_and_description(tmp_path: Path, make_config) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    dataset = prepare(make_config(files=[str(path)]))
    counts = Counter(dataset.train.shards[0].read().tolist())
    total = sum(counts.values())
    expected = -sum(c / total * math.log(c / total) for c in counts.values())
    assert dataset.unigram_entropy == pytest.approx(expected, rel=1e-12)
    assert dataset.manifest.unigram_entropy == pytest.approx(expected, rel=1e-12)
    facts = describe(dataset)
    json.dumps(facts)
    assert facts["train"]["tokens"] == total
    assert facts["train"]["bytes"] == 2 * total
    assert facts["sample"] == documents_of(dataset, dataset.train)[0]
    assert 1 < facts["train"]["bytes_per_token"] < 5
    assert Loader(dataset.train, 2, 16, seed=0).batch(0).shape == (2, 17)
