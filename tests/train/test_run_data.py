"""A run goes on with the data it began with or not at all, and its record says which it was."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from questtrain.cli.main import main
from questtrain.data.identity import DataIdentity, read_identity
from questtrain.errors import UserError
from questtrain.inference.load import load_run
from questtrain.store.checkpoint import checkpoint_folders
from tests.data import tokenizers
from tests.training_data import TINY

FILES = ("argparse", "ast", "codecs", "shutil")
SHORT = (*TINY, "max_steps=3", "checkpoint_every=1", "data.num_workers=1", "name=run")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, a tokenizer, and ``runs/run``, which has a checkpoint and has not
    ended."""
    place = tmp_path_factory.mktemp("origin")
    (place / "texts").mkdir()
    texts = []
    for name in FILES:
        texts.append(Path(os.__file__).with_name(f"{name}.py").read_text()[:8000])
        (place / "texts" / f"{name}.txt").write_text(texts[-1])
    tokenizers.save(tokenizers.byte_bpe(texts, ("<s>", "<other>")), place / "tokenizer.json")
    assert main(words(place)) == 0
    run = place / "runs" / "run"
    (run / "run.json").unlink()
    shutil.rmtree(checkpoint_folders(run)[-1])
    return place


@pytest.fixture
def place(origin: Path, tmp_path: Path) -> Path:
    """A copy of all that; the data of the run has moved with it."""
    return Path(shutil.copytree(origin, tmp_path / "place"))


@pytest.fixture
def run(place: Path) -> Path:
    return place / "runs" / "run"


def words(place: Path, *more: str) -> list[str]:
    return [
        *("train", *SHORT, "data=text", f"data.files={place}/texts/a*.txt"),
        *(f"data.validation_files=[{place}/texts/codecs.txt]", f"runs_dir={place}/runs"),
        *(f"data.tokenizer={place}/tokenizer.json", f"data.cache_dir={place}/cache", *more),
    ]


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def retrain(place: Path) -> None:
    other = tokenizers.byte_bpe(["qzx jkvw " * 20, "zzz xxx"])
    tokenizers.save(other, place / "tokenizer.json")


def grow(place: Path) -> None:
    shutil.copy(place / "texts" / "shutil.txt", place / "texts" / "another.txt")


def change_validation(place: Path) -> None:
    shutil.copy(place / "texts" / "shutil.txt", place / "texts" / "codecs.txt")


def edit(place: Path) -> None:
    path = place / "texts" / "ast.txt"
    path.write_text(path.read_text()[::-1])


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (retrain, (), r"tokenizer: SHA-256 \w{12} in the folder, SHA-256 \w{12} now"),
        (grow, (), r"training data: [\d,]+ tokens \(SHA-256 \w+\) in the folder, [\d,]+ tokens"),
        (change_validation, (), "validation data: "),
        (edit, (), "training data: "),
        (
            None,
            ("data.bos_token=<other>",),
            "token that begins documents: id 0 in the folder, id 1 now",
        ),
        (None, ("data.text_field=body",), "data.text_field: 'text' in the folder, 'body' asked"),
        (None, ("data.max_tokens=900",), "data.max_tokens: None in the folder, 900 asked for"),
    ],
)
def test_other_data_is_refused(place: Path, run: Path, capsys, change, more, said) -> None:
    """Exit 2, what differs, and the folder as it was."""
    before = contents(run)
    if change is not None:
        change(place)
    capsys.readouterr()
    assert main(words(place, *more)) == 2
    message = capsys.readouterr().err
    assert re.search(said, message), message
    assert "Give this run another name" in message
    assert contents(run) == before


def test_data_that_has_only_moved_is_the_same(place: Path, run: Path) -> None:
    assert main(words(place)) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_replaced_token_files_are_refused(place: Path, capsys) -> None:
    """Also with the size and the times of the old one."""
    rng = np.random.default_rng(0)
    path = place / "train.bin"
    rng.integers(0, 500, 4000).astype("<u2").tofile(path)
    rng.integers(0, 500, 1000).astype("<u2").tofile(place / "val.bin")
    asked = [
        *("data=tokens", f"data.files={path}", f"data.validation_files={place}/val.bin"),
        *(f"data.tokenizer={place}/tokenizer.json", f"data.cache_dir={place}/cache"),
    ]
    command = ["train", *SHORT, *asked, f"runs_dir={place}/runs", "name=tokens"]
    assert main(command) == 0
    times = path.stat()
    rng.integers(0, 500, 4000).astype("<u2").tofile(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert main(command) == 2
    assert "training data: 4,000 tokens" in capsys.readouterr().err


def test_a_run_of_an_earlier_version(origin: Path, place: Path, run: Path, capsys, caplog) -> None:
    """Its folder holds a tokenizer and no data.json: another tokenizer is refused all the same."""
    (run / "data.json").unlink()
    config = (run / "config.yaml").read_text()  # the paths of such a run may not change
    (run / "config.yaml").write_text(config.replace(str(origin), str(place)))
    shutil.copy(place / "tokenizer.json", place / "kept.json")
    retrain(place)
    assert main(words(place)) == 2
    assert "tokenizer: SHA-256" in capsys.readouterr().err
    assert not (run / "data.json").exists()
    shutil.move(place / "kept.json", place / "tokenizer.json")
    with caplog.at_level(logging.WARNING):
        assert main(words(place)) == 0
    assert "did not record its data" in caplog.text + capsys.readouterr().err
    assert read_identity(run) is not None


def test_a_run_without_its_tokenizer_gets_it_again(place: Path, run: Path) -> None:
    content = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").write_bytes(b"damaged")
    assert main(words(place)) == 0
    assert (run / "tokenizer.json").read_bytes() == content


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"vocab_size": 3}'])
def test_a_damaged_data_json(place: Path, run: Path, capsys, content: str) -> None:
    identity = json.loads((run / "data.json").read_text())
    for damaged in (content, json.dumps(identity | {"bos_id": "0"})):
        (run / "data.json").write_text(damaged)
        with pytest.raises(UserError, match=r"data\.json is damaged: .* Restore it"):
            read_identity(run)
    assert main(words(place)) == 2
    assert "data.json" in capsys.readouterr().err


def test_the_bos_that_was_chosen_is_used_to_generate(place: Path) -> None:
    """Not the one that the tokenizer's copy alone would suggest."""
    assert main(words(place, "data.bos_token=<other>", "name=other")) == 0
    assert load_run(place / "runs" / "other", "cpu").tokenizer.bos_id == 1
    assert load_run(place / "runs" / "run", "cpu").tokenizer.bos_id == 0


@pytest.mark.parametrize(("steps", "level"), [(3, None), (60, "INFO"), (400, "WARNING")])
def test_passes_are_said_and_recorded(place: Path, caplog, monkeypatch, steps, level) -> None:
    """Quietly, as a remark, and from four on as a warning."""
    from questtrain.train.trainer import Trainer

    def finish(trainer):
        return trainer._finish("completed")

    monkeypatch.setattr(Trainer, "run", finish)  # what is said and recorded, without training
    (place / "runs" / "new").mkdir()
    (place / "runs" / "new" / "metrics.jsonl").write_text(
        '{"step": 1, "train_loss": 6.0, "tokens": 1}\n{"step": 1, "val_loss": 6.0, "tokens": 1}\n'
    )
    with caplog.at_level(logging.INFO, "questtrain"):
        assert main(words(place, f"max_steps={steps}", "name=new")) == 0
    record = json.loads((place / "runs" / "new" / "run.json").read_text())
    tokens = record["data_tokens"]
    assert record["epochs"] == pytest.approx(steps * 4 * 32 / tokens, rel=0.02)
    said = [r for r in caplog.records if "passes (epochs) over" in r.getMessage()]
    assert [r.levelname for r in said] == ([level] if level else [])
    assert all(f"over {tokens:,} tokens" in r.getMessage() for r in said)


def test_the_corpus_is_one_whatever_part_of_it_is_read(tmp_path: Path, make_run_data) -> None:
    """Of C4 a longer run prepares more, and it is the same corpus; of a text that has grown not."""
    short, long = (make_run_data("c4", need) for need in (10, 10_000))
    assert short.train_tokens < long.train_tokens
    assert short.train_sha256 != long.train_sha256
    assert short.corpus_sha256 == long.corpus_sha256
    cut, whole = (make_run_data("text", max_tokens=limit) for limit in (100, None))
    assert cut.train_sha256 != whole.train_sha256
    assert cut.corpus_sha256 == whole.corpus_sha256
    (tmp_path / "en" / "c4-train.9.jsonl").write_text('{"text": "more"}\n')
    assert make_run_data("text").corpus_sha256 != whole.corpus_sha256


@pytest.fixture
def make_run_data(tmp_path: Path, monkeypatch):
    """The identity of a run's data on five files, each a piece, and one for validation."""
    from questtrain.config.schema import DataConfig
    from questtrain.data import prepare, sources
    from tests.data.corpus import sentences, write_jsonl

    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    for i in range(5):
        write_jsonl(tmp_path / "en" / f"c4-train.{i}.jsonl", sentences(20, seed=i))
    validation = write_jsonl(tmp_path / "en" / "c4-validation.jsonl", sentences(9, seed=9))
    tokenizer = tokenizers.save(tokenizers.byte_bpe(sentences(50)), tmp_path / "tokenizer.json")

    def make(source: str, need: int | None = None, **fields: object) -> DataIdentity:
        config = DataConfig(
            name=source,
            source=source,
            files=[f"{tmp_path}/en/*.jsonl"],
            validation_files=[str(validation)],
            tokenizer=str(tokenizer),
            cache_dir=str(tmp_path / "cache"),
            num_workers=1,
            **fields,
        )
        return DataIdentity.of(prepare(config, need))

    return make


def test_ranks_that_read_other_data(make_run_data) -> None:
    """Hosts may hold different files under one name: the rank that differs says so."""
    from questtrain.train.parallel import World
    from questtrain.train.run import check_same_on_all

    first, mine = (make_run_data("text", max_tokens=limit) for limit in (100, 101))

    class Second(World):
        def broadcast_object(self, value):
            return first

    check_same_on_all(first, Second(1, 1))
    with pytest.raises(UserError, match=r"rank 1 reads other data than rank 0.*\n.*training data"):
        check_same_on_all(mine, Second(1, 1))
