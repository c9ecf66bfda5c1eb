"""`questtrain export` and `verify` before anything is written: words, folders, packages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from questtrain.cli import export as command
from questtrain.cli import verify as verify_command
from questtrain.cli.main import main
from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.errors import UserError, WriteFailed
from questtrain.inference.export import export_format, write
from questtrain.inference.export.format import Options
from questtrain.store.files import writing

if TYPE_CHECKING:
    from questtrain.inference.export.source import Source


class OneFile:
    """A format that writes one file and refuses nothing."""

    name = "one-file"
    runtimes: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def refusal(self, source: Source, options: Options) -> None:
        return None

    def write(self, source: Source, folder: Path, options: Options) -> None:
        (folder / "model").write_text("weights")


@pytest.fixture
def write_to(monkeypatch):
    """Export no run in particular by that format."""
    form = OneFile()
    monkeypatch.setattr(write, "export_format", lambda name: form)

    def export(output: Path) -> None:
        write.export(None, form.name, output, Options(), verify=False)  # type: ignore[arg-type]

    export.form = form
    return export


def test_the_list_needs_neither_torch_nor_a_runtime():
    probe = (
        "import sys; from questtrain.cli.main import main; main(['export', '--list']);"
        "sys.exit(bool({'torch', 'onnx', 'gguf', 'transformers'} & sys.modules.keys()))"
    )
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0
    assert min(seconds) < 1.0
    assert all(name in done.stdout for name in EXPORT_FORMATS)


def test_every_format_of_the_list_is_there(capsys):
    assert main(["export", "--list", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        form = export_format(row["format"])
        assert (form.name, list(form.runtimes)) == (row["format"], row["runtimes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--list", "--jsn"], "--json"),
        (["--list", "run=x"], "takes no settings"),
        (["run=x", "format=onx", "output=y"], "Did you mean 'onnx'"),
    ],
)
def test_words_that_export_does_not_know(words, message):
    with pytest.raises(UserError, match=message):
        command.main(words)


def test_a_format_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr("questtrain.inference.export.find_spec", lambda name: None)
    for name, entry in EXPORT_FORMATS.items():
        if entry.needs:
            with pytest.raises(UserError, match=r"pip install '\.\[export\]'"):
                export_format(name)


def test_an_output_that_cannot_be_made(tmp_path, write_to):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "certificate.json").touch()
    before = sorted(tmp_path.rglob("*"))
    for name, reason in {
        "file/x": "Not a directory",
        "x" * 250: "name too long",
        "link": "exists already",
        "export/inner": "outside it",
    }.items():
        with pytest.raises(UserError, match=reason):
            write_to(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_exports_the_second_overwrites_nothing(tmp_path, write_to, monkeypatch):
    output = tmp_path / "output"

    def late(source: Source, folder: Path, options: Options) -> None:
        output.mkdir()
        (output / "model").write_text("of the first")

    monkeypatch.setattr(write_to.form, "write", late)
    with pytest.raises(UserError, match="exists already"):
        write_to(output)
    assert (output / "model").read_text() == "of the first"
    assert list(tmp_path.iterdir()) == [output]


def test_what_a_killed_process_left_goes_with_the_next_export(tmp_path, write_to):
    left = tmp_path / ".output.ab_12.tmp"
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "half").touch()
    (left / "lock").touch()
    write_to(tmp_path / "output")
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "model"]


def test_a_short_write_of_numpy_is_a_full_disk(tmp_path):
    with pytest.raises(WriteFailed, match="No space left"), writing(tmp_path / "model"):
        raise OSError("524288 requested and 492256 written")


def test_a_packed_export_is_no_run_to_export(tmp_path):
    (tmp_path / "questtrain.json").touch()
    with pytest.raises(UserError, match="the run that it was made of"):
        command.main([f"run={tmp_path}", "format=hf", f"output={tmp_path / 'x'}"])


def test_verify_names_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "first").mkdir()
    with pytest.raises(UserError, match=r"no such folder.*first"):
        verify_command.main([str(tmp_path / "frist"), "run=x"])
