"""``questtrain report``: words, files, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.scaling.report.markup import number_text, script, tag
from tests.scaling.law_runs import finish, write_law_table
from tests.training_data import questtrain


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with a small table and a run."""
    monkeypatch.chdir(tmp_path)
    write_law_table(tmp_path / "grid.csv", precisions=("4", "16"))
    finish(tmp_path / "runs" / "a")
    return tmp_path


def test_the_page_is_written_and_its_path_printed(here):
    result = questtrain("report", "grid.csv", cwd=here)
    assert (result.returncode, result.stdout) == (0, "report.html\n"), result.stderr
    (line,) = result.stderr.splitlines()
    assert "MB" in line
    document = Path("report.html").read_text(encoding="utf-8")
    assert "<h1>grid.csv</h1>" in document
    assert "questtrain report grid.csv" in document


@pytest.mark.parametrize("words", [["-o", "new/p.html"], ["--output=new/p.html"]])
def test_output_and_title(here, capsys, words):
    assert main(["report", "runs", *words, "--title", "Mine & yours"]) == 0
    assert capsys.readouterr().out == "new/p.html\n"
    document = Path("new/p.html").read_text(encoding="utf-8")
    assert "<h1>Mine &amp; yours</h1>" in document
    assert "--title &#x27;Mine &amp; yours&#x27;" in document
    assert sorted(path.name for path in here.iterdir()) == ["grid.csv", "new", "runs"]


BAD_INPUT = [
    (["-o", "p.html"], ["no runs given"]),
    (["rnus"], ["rnus: there is no such folder", "Did you mean 'runs'?"]),
    (["grdi.csv"], ["grdi.csv: there is no such file", "Did you mean 'grid.csv'?"]),
    (["empty"], ["empty is not a run"]),
    (["grid.csv", "-o", "p.pdf"], ["-o p.pdf", "in .html"]),
    (["grid.csv", "-o"], ["-o needs a file"]),
    (["grid.csv", "--title"], ["--title needs a value"]),
    (["grid.csv", "--titel=x"], ["unknown option '--titel=x'", "Did you mean '--title'?"]),
    (["grid.csv", "-o", "taken.html"], ["taken.html cannot be written"]),
    (["bad.csv"], ["bad.csv, line 2", "no val_loss"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD_INPUT, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_message_and_exit_code_2(here, capsys, words, parts):
    (here / "empty").mkdir()
    (here / "taken.html").mkdir()
    (here / "bad.csv").write_text("non_embedding_params,tokens,precision\n1,2,16\n")
    assert main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err
    assert not (here / "report.html").exists()


def test_help(capsys):
    for words in (["report"], ["report", "--help"]):
        assert main(words) == 0
        assert "questtrain report RUNS…" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "  report " in capsys.readouterr().out


def test_neither_torch_nor_pyplot_is_imported(here):
    probe = (
        "import sys; from questtrain.cli.report import help_page, main; help_page();"
        "assert not {'plotly', 'matplotlib'} & sys.modules.keys(); main(['runs']);"
        "sys.exit(bool({'torch', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", probe]
    result = subprocess.run(command, cwd=here, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.24312, "0.2431"),
        (12345.6, "12,346"),
        (1.23456e7, "1.235×10⁷"),
        (-3.2e-6, "\N{MINUS SIGN}3.200×10⁻⁶"),
        (9.99996, "10.00"),
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers(value, text):
    assert number_text(value) == text


def test_attributes_and_scripts_cannot_be_left():
    assert tag("td", "x", title='"><b>', data_value=3, hidden=None) == (
        '<td title="&quot;&gt;&lt;b&gt;" data-value="3">x</td>'
    )
    assert script("a = '</script>'").count("</script>") == 1
