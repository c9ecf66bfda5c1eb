"""Every kind of bad input: one message with what, where, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import open_dataset, prepare, sources
from questtrain.errors import UserError
from tests.data.corpus import documents_of, sentences, write_jsonl

DOCUMENTS = sentences(40)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus" / "good.jsonl", DOCUMENTS)


def test_no_files_match(tmp_path: Path, make_config) -> None:
    with pytest.raises(UserError, match=r"data\.files: no file matches '.*\*\.jsonl'"):
        prepare(make_config(files=[f"{tmp_path}/*.jsonl"]))
    with pytest.raises(UserError, match=r"is a folder; write .*/\*\*/\*\.txt"):
        prepare(make_config(files=[str(tmp_path)]))
    (tmp_path / "deep").mkdir()
    for name in ("a.md", "deep/b.md", "c.jsonl.gz", "d.png", "e.png", "f.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"is a folder; write .*/\*\*/\*\.md"):
        prepare(make_config(files=[str(tmp_path)]))


def test_unknown_suffix(tmp_path: Path, make_config) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(
        UserError, match=r"unknown kind of data file .*a\.docx.*\.jsonl.*data=tokens"
    ):
        prepare(make_config(files=[f"{tmp_path}/a.docx"]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_empty_file(corpus: Path, make_config, name: str) -> None:
    corpus.with_name(name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"1 of 2 data files are empty: .*{name}"):
        prepare(make_config(files=[f"{corpus.parent}/*"]))


def test_file_without_documents(corpus: Path, make_config) -> None:
    corpus.with_name("blank.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"blank\.jsonl is empty"):
        prepare(make_config(files=[f"{corpus.parent}/*"]))


@pytest.mark.parametrize("workers", [1, 2])
def test_not_utf8(corpus: Path, make_config, monkeypatch, workers: int) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    bad = corpus.with_name("late.txt")
    bad.write_bytes(b"caf\xe9 au lait")
    config = make_config(files=[f"{corpus.parent}/*"], num_workers=workers)
    with pytest.raises(
        UserError, match=r"late\.txt is not UTF-8.*0xe9 at byte offset 3.*already prepared is kept"
    ):
        prepare(config)
    if workers == 1:  # with two, the good piece may have been under way
        (folder,) = Path(config.cache_dir).iterdir()
        assert (folder / "train-00000.bin").exists(), "finished shards are kept"
        assert not list(folder.rglob("*.tmp"))


def test_not_utf8_in_a_row(tmp_path: Path, make_config) -> None:
    path = tmp_path / "a.jsonl"
    first = b'{"text": "ok"}\n'
    path.write_bytes(first + b'{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=rf"byte offset {len(first) + 13}"):
        prepare(make_config(files=[str(path)]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut o', r"bad\.jsonl, line 3: damaged JSON"),
        ('{"text": 1\n', r"line 3: damaged JSON \(Expecting ',' delimiter at column 11\)"),
        ('{"text" 1}\n', r"line 3: damaged JSON \(Expecting ':' delimiter at column 9\)"),
        ('{"content": "x", "id": 1}', r"line 3: no field 'text'; choose .* from content, id"),
        ('{"text": 5}', r"line 3: the field 'text' holds int, not text"),
        ('"just a string"', r"line 3: expected an object with the field 'text', found str"),
    ],
)
def test_bad_row(tmp_path: Path, make_config, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        prepare(make_config(files=[str(path)]))


def test_bad_parquet(tmp_path: Path, make_config) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["x"], "id": [1]}), path)
    with pytest.raises(UserError, match=r"no field 'text'; choose .* from content, id"):
        prepare(make_config(files=[str(path)]))
    with pytest.raises(UserError, match="row 1: the field 'id' holds int"):
        prepare(make_config(files=[str(path)], text_field="id"))
    path.write_bytes(b"PAR1 no more than that")
    with pytest.raises(UserError, match=r"a\.parquet is damaged or no parquet file"):
        prepare(make_config(files=[str(path)]))


def write_tokens(path: Path, ids: list[int], dtype: str = "<u2") -> str:
    np.array(ids, dtype=dtype).tofile(path)
    return str(path)


def test_tokens_of_another_vocabulary(tmp_path: Path, make_config) -> None:
    config = make_config(
        "tokens",
        files=[write_tokens(tmp_path / "train.bin", [1, 2, 299, 300, 5])],
        validation_files=[write_tokens(tmp_path / "val.bin", [1, 2])],
    )
    with pytest.raises(
        UserError, match=r"train\.bin holds the id 300 at token 3, but the vocabulary ends at 299"
    ):
        prepare(config)
    config.vocab_size = 301
    assert prepare(config).vocab_size == 301
    config.vocab_size = 70_000
    write_tokens(tmp_path / "val.bin", [1, 2, 3])
    with pytest.raises(UserError, match=r"6 bytes, no multiple of 4.*uint32"):
        prepare(config)


def test_tokens_need_validation_files(tmp_path: Path, make_config) -> None:
    path = write_tokens(tmp_path / "train.bin", [1, 2])
    with pytest.raises(UserError, match=r"data=tokens needs data\.validation_files"):
        prepare(make_config("tokens", files=[path]))
    with pytest.raises(UserError, match=r"train\.bin stands in data\.files and in"):
        prepare(make_config("tokens", files=[path], validation_files=[path]))


def test_truncated_and_corrupt_shards(corpus: Path, make_config) -> None:
    config = make_config(files=[str(corpus)])
    dataset = prepare(config)
    shard = dataset.train.shards[0].path
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    for attempt in (lambda: prepare(config), lambda: open_dataset(dataset.folder)):
        with pytest.raises(UserError, match=r"train-00000\.bin is damaged.*data prepare"):
            attempt()
    flipped = bytearray(content)
    flipped[10] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its checksum differs"):
        prepare(config).verify()
    shard.unlink()
    prepare(config).verify()


def test_ids_beyond_the_vocabulary_are_found_when_they_are_read(corpus: Path, make_config) -> None:
    """A shard whose bytes have changed, and not its size."""
    from questtrain.data import Loader

    dataset = prepare(make_config(files=[str(corpus)]))
    shard = dataset.train.shards[0].path
    content = bytearray(shard.read_bytes())
    content[1::64] = b"\xff" * len(content[1::64])
    shard.write_bytes(content)
    loader = Loader(prepare(make_config(files=[str(corpus)])).train, 4, 16, seed=0)
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: .* is the id .*--verify"):
        loader.batch(0)


def test_corrupt_tokenizer_copy(corpus: Path, make_config) -> None:
    dataset = prepare(make_config(files=[str(corpus)]))
    copy = dataset.folder / "tokenizer.json"
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"tokenizer\.json is corrupt"):
        dataset.verify()


def test_damaged_manifest(corpus: Path, make_config) -> None:
    config = make_config(files=[str(corpus)])
    dataset = prepare(config)
    path = dataset.folder / "manifest.json"
    content = json.loads(path.read_text())
    for damaged in ("{", "[]", "{}", json.dumps(content | {"shards": [{"file": "x"}]})):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"manifest .*manifest\.json is damaged"):
            prepare(config)
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="has format 99, this version of questtrain reads 2"):
        open_dataset(dataset.folder)
    path.unlink()
    with pytest.raises(UserError, match="is no prepared data set"):
        open_dataset(dataset.folder)
    assert prepare(config).manifest == dataset.manifest, "the pieces' records rebuild it"


def test_unwritable_cache(corpus: Path, make_config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot use data\.cache_dir=.*QUESTTRAIN_CACHE"):
        prepare(make_config(files=[str(corpus)], cache_dir=str(tmp_path / "file" / "cache")))


def test_full_disk(corpus: Path, make_config, monkeypatch) -> None:
    from questtrain.data import piece

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(piece, "atomic_write", full)
    with pytest.raises(UserError, match=r"cannot make train-00000 in .*No space left"):
        prepare(make_config(files=[str(corpus)]))


def test_no_document_for_validation(tmp_path: Path, make_config) -> None:
    path = write_jsonl(tmp_path / "book.jsonl", ["one long document " * 50])
    with pytest.raises(UserError, match=r"none of the 1 documents .* fell to validation.*"):
        prepare(make_config(files=[str(path)], validation_fraction=1e-9))
    with pytest.raises(UserError, match=r"none of the 1 documents .* left for training"):
        prepare(make_config(files=[str(path)], validation_fraction=1 - 1e-9))


def test_one_file_of_text_is_one_document(tmp_path: Path, make_config) -> None:
    """Which is said before it is tokenized."""
    path = tmp_path / "book.txt"
    path.write_text("one long document " * 50)
    with pytest.raises(UserError, match=r"book\.txt is one document .* data\.validation_files"):
        prepare(make_config(files=[str(path)]))
    assert not (tmp_path / "cache").exists()


def test_bad_settings(corpus: Path, make_config) -> None:
    files = [str(corpus)]
    with pytest.raises(UserError, match=r"validation_fraction=1\.5 must lie between 0 and 1"):
        prepare(make_config(files=files, validation_fraction=1.5))
    with pytest.raises(UserError, match=r"data\.num_workers=0 must be at least 1"):
        prepare(make_config(files=files, num_workers=0))
    with pytest.raises(UserError, match=r"data=text needs data\.tokenizer"):
        prepare(make_config(files=files, tokenizer=None))
    with pytest.raises(UserError, match=r"unknown data\.source 'txt'.*Did you mean 'text'"):
        prepare(make_config("txt", files=files))
    with pytest.raises(UserError, match=r"vocab_size=100 is too small"):
        prepare(make_config("stdlib", tokenizer=None, vocab_size=100))
    with pytest.raises(UserError, match="name training files"):
        prepare(make_config(files=files, validation_files=files))


def test_folder_can_be_moved(corpus: Path, make_config, tmp_path: Path) -> None:
    dataset = prepare(make_config(files=[str(corpus)]))
    moved = shutil.move(dataset.folder, tmp_path / "moved")
    opened = open_dataset(moved)
    opened.verify()
    assert set(documents_of(opened, opened.train)) <= set(DOCUMENTS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vocab_size": "300"}, "'vocab_size' holds '300'; it should be a valid integer"),
        ({"vocab_size": -1}, "'vocab_size' holds -1; it should be greater than or equal to"),
        ({"dtype": 2}, "'dtype' holds 2; it should be a valid string"),
        ({"complete": "yes"}, "'complete' holds 'yes'; it should be a valid boolean"),
        ({"totals": {"train": 5}}, "totals: 'train' holds 5; it should be an object"),
        ({"shards": [{}]}, "shards.0: 'file' is missing"),
        ({"tokenizer": []}, "'tokenizer' holds []; it should be an object"),
        ({"unigram_entropy": None}, "'unigram_entropy' holds None; it should be a valid number"),
    ],
)
def test_a_manifest_s_damaged_field_is_named(corpus: Path, make_config, change, problem) -> None:
    config = make_config(files=[str(corpus)])
    path = prepare(config).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        prepare(config)
    assert f"the manifest {path} is damaged: {problem}" in str(error.value)
    assert "Delete that file and run `questtrain data prepare` again" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", "short", "float", "negative"])
def test_damaged_token_counts_are_named(corpus: Path, make_config, content) -> None:
    dataset = prepare(make_config(files=[str(corpus)]))
    path = next(dataset.folder.glob("pieces/*.npy"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        counts = np.load(path)
        wrong = {"short": counts[:-1], "float": counts * 1.0, "negative": -counts - 1}
        np.save(path, wrong[content])
    with pytest.raises(UserError, match=rf"token counts {path} are damaged.*data prepare"):
        _ = dataset.unigram_entropy
