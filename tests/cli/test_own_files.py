"""YAML files of the user's own: whatever is wrong in one is said with its file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.main import main

HEADER = "# @package _global_\n"
MODEL = (
    HEADER + "model:\n  name: mine\n  nominal_params: 30_000\n  num_layers: 1\n"
    "  hidden_size: 32\n  num_heads: 2\nlr: 1e-3\n"
)
BROKEN: dict[str, tuple[str | bytes, int, str]] = {
    # what is in the file, the line and the words of the message
    "open-brace": (HEADER + "model: {name: x\n", 3, "expected ',' or '}'"),
    "tab": (MODEL + "train:\n\tthreads: 1\n", 10, "cannot start any token"),
    "undefined-alias": (MODEL + "name: *x\n", 9, "undefined alias"),
    "two-documents": (MODEL + "---\na: 1\n", 9, "another document"),
    "key-twice": (MODEL + "lr: 2\n", 9, "duplicate key lr"),
    "object": (MODEL + "name: !!python/object/apply:os.getcwd []\n", 9, "constructor for the tag"),
    "merge-of-a-number": (MODEL + "<<: 3\n", 9, "merging"),
    "holds-itself": (HEADER + "model: &a {b: *a}\n", 2, "model.b holds itself"),
    "binary": (b"\xff\xfe\x00", 1, "no text in UTF-8"),
    "latin-1": (MODEL.encode() + "name: café\n".encode("latin-1"), 9, "no text in UTF-8"),
    "control": (MODEL + "name: a\x07b\n", 9, "special characters"),
    "list": ("- a\n- b\n", 1, "it holds a list"),
    "word": ("hello\n", 1, "it holds a single value"),
    "empty": ("", 1, "it holds nothing"),
    "comment": (HEADER, 1, "it holds nothing"),
    "no-header": (MODEL.removeprefix(HEADER), 2, "begins with '# @package _global_'"),
    "comment-before-header": ("# mine\n" + MODEL, 4, "begins with '# @package _global_'"),
    "other-header": (MODEL.replace("_global_", "foo"), 3, "unknown setting 'foo.model.name'"),
    "unknown-key": (MODEL.replace("hidden", "hiden"), 6, "Did you mean 'model.hidden_size'?"),
    "unknown-group": (MODEL + "optin: {beta1: 0.5}\n", 9, "unknown setting 'optin.beta1'"),
    "number-as-key": (MODEL + "1: 2\n", 9, "unknown setting '1'"),
    "target": (MODEL + "_target_: os.getcwd\n", 9, "unknown setting '_target_'"),
    "group-is-a-number": (HEADER + "model: 5\n", 2, "model must be a group of settings"),
    "group-is-null": (MODEL + "optim: null\n", 9, "optim must be a group of settings"),
    "setting-is-a-group": (MODEL + "seed: {a: 1}\n", 9, "unknown setting 'seed.a'"),
    "wrong-type": (MODEL.replace("layers: 1", "layers: one"), 5, "must be a whole number"),
    "list-of-mappings": (MODEL + "quant: {skip: [{a: 1}]}\n", 9, "quant.skip={'a': 1}"),
    "out-of-range": (MODEL.replace("1e-3", "-1"), 8, "lr=-1.0 must be positive"),
    "nan": (MODEL + "optim: {eps: .nan}\n", 9, "optim.eps=nan"),
    "path-as-name": (MODEL.replace("mine", "../mine"), 3, "model.name='../mine' is no name"),
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path


def words(folder: Path) -> list[str]:
    return ["--config-dir", str(folder), "model=mine", "data=stdlib", "--cfg", "job"]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_said_with_file_and_line(
    own: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    content, line, part = BROKEN[kind]
    file = own / "model" / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", *words(own)]) == 2
    message = capsys.readouterr().err
    assert re.match(rf"error: {re.escape(str(file))}, line {line}(, column \d+)?: ", message)
    assert part in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        MODEL,
        MODEL.replace("\n", "\r\n"),
        MODEL + "optim: {}\n",
        "\n" + MODEL + "seed: ${model.num_layers}\n",
        HEADER + "defaults: [/model/30k]\n" + MODEL.removeprefix(HEADER),
    ],
    ids=["plain", "crlf", "empty-group", "interpolation", "defaults"],
)
def test_what_is_right_is_read(own: Path, content: str) -> None:
    (own / "model" / "mine.yaml").write_text(content, newline="")
    config = train_config(parse_arguments(words(own)))
    assert (config.model.name, config.model.hidden_size, config.lr) == ("mine", 32, 1e-3)


def test_a_file_that_was_not_chosen_may_be_broken(own: Path) -> None:
    (own / "model" / "mine.yaml").write_text(MODEL)
    (own / "model" / "other.yaml").write_bytes(b"\xff")
    train_config(parse_arguments(words(own)))


def test_folders_of_ones_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A group's folder may hold folders; none of them leads out."""
    (own / "model" / "mine").mkdir()
    (own / "model" / "mine" / "tiny.yaml").write_text(MODEL)
    chosen = [word.replace("model=mine", "model=mine/tiny") for word in words(own)]
    assert train_config(parse_arguments(chosen)).model.name == "mine"
    outside = [word.replace("model=mine", "model=../model/mine/tiny") for word in words(own)]
    assert main(["train", *outside]) == 2
    assert "unknown model '../model/mine/tiny'" in capsys.readouterr().err


def test_a_name_that_is_taken(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra would read ours, and say nothing."""
    (own / "model" / "30M.yaml").write_text(MODEL)
    assert main(["train", "--config-dir", str(own), "model=30M", "--cfg", "job"]) == 2
    assert "30M.yaml has the name of one of ours" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "it's", "a,b", "[a]", "a=b", "ü"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / name / "model" / "mine.yaml").write_text(MODEL)
    assert train_config(parse_arguments(words(tmp_path / name))).model.name == "mine"


def test_a_broken_launcher(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "launcher").mkdir()
    file = own / "launcher" / "ours.yaml"
    file.write_text("kind: local\nthreads: [\n")
    sweep = ["sweep", "smoke", "--dry-run", "launcher=ours", "--config-dir", str(own)]
    assert main(sweep) == 2
    assert f"error: {file}, line 3, column 1: no YAML: " in capsys.readouterr().err


SECRET = "s3cret"


@pytest.mark.parametrize(
    "word",
    ["lr=${oc.env:SECRET}", "data.source=${oc.env:SECRET}", "bits=${oc.env:SECRET,w4a4}",
     "quant.skip=[${oc.env:SECRET}]", "logger.project=a-${oc.env:SECRET}",
     "seed='${oc.decode:${oc.env:SECRET}}'"],
)  # fmt: skip
def test_the_environment_is_not_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """It would be written into the run's records. The message does not show it either."""
    monkeypatch.setenv("SECRET", SECRET)
    assert main(["train", "model=30k", "data=stdlib", word, "--cfg", "job"]) == 2
    shown = capsys.readouterr()
    assert "${oc.env:SECRET}: settings do not read the environment" in shown.err
    assert SECRET not in shown.err + shown.out


def test_free_text_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    word = "data.text_field=${oc.env:SECRET}"
    assert main(["train", "model=30k", "data=stdlib", word, "--cfg", "job"]) == 0
    shown = capsys.readouterr()
    assert "text_field: ${oc.env:SECRET}" in shown.out
    assert SECRET not in shown.err + shown.out


def test_nor_by_files(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own YAML, and a sweep's; ``data.cache_dir`` has a variable that it may read."""
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("QUESTTRAIN_CACHE", "/somewhere/else")
    (own / "model" / "mine.yaml").write_text(MODEL + "logger: {project: '${oc.env:SECRET}'}\n")
    sweep = own / "mine.yaml"
    sweep.write_text("settings: {logger.project: '${oc.env:SECRET}'}\naxes: {model: [30k]}\n")
    for command in (["train", *words(own)], ["sweep", str(sweep), "--dry-run", "data=stdlib"]):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert "settings do not read the environment" in shown.err
        assert SECRET not in shown.err + shown.out
    config = train_config(parse_arguments(["data=stdlib"]))
    assert config.data.cache_dir == "/somewhere/else"
