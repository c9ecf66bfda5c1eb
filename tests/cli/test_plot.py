"""``questtrain plot``: words, files, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.scaling.figures import FIGURES
from tests.scaling import CONTENT as DIAGNOSTICS
from tests.scaling import make_run
from tests.scaling.law_runs import runs_for, write_law_table
from tests.training_data import questtrain


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A working folder with ``sweep/`` of two runs, one of which has every record."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "sweep" / "done", *DIAGNOSTICS)
    make_run(tmp_path / "sweep" / "started", method="ste")
    return tmp_path


@pytest.mark.parametrize("name", ["mask", "law", "table4"])
def test_the_default_is_a_png_here_and_its_path_is_printed(runs, capsys, name):
    given = str(runs_for(name, Path("given")))
    for word in (name, FIGURES[name].alias):
        assert main(["plot", word, given]) == 0
        assert capsys.readouterr().out == f"{name}.png\n"
        assert Path(f"{name}.png").read_bytes().startswith(b"\x89PNG")
        Path(f"{name}.png").unlink()


@pytest.mark.parametrize(
    "words",
    [
        ["mask", "sweep", "-o", "figures/m.pdf"],
        ["-o", "figures/m.pdf", "mask", "sweep/done", "sweep/started"],
        ["mask", "--output=figures/m.pdf", "sweep"],
    ],
)
def test_output(runs, capsys, words):
    assert main(["plot", *words]) == 0
    assert capsys.readouterr().out == "figures/m.pdf\n"
    assert Path("figures/m.pdf").read_bytes().startswith(b"%PDF")


def test_json_prints_what_would_be_drawn(runs, capsys):
    assert main(["plot", "fig2", "sweep", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["figure"] == "alignment"
    assert data["title"] == "Gradient alignment, 30M"
    (line,) = data["lines"]
    assert line["label"] == "QuEST, W8A8"
    assert line["runs"] == ["sweep/done"]
    assert line["depth"] == [1, 2, 3, 4]
    assert line["mean"] == pytest.approx([0.9, 0.91, 0.92, 0.93])
    assert sorted(path.name for path in runs.iterdir()) == ["sweep"], "nothing is drawn"


def test_runs_left_out_are_named_on_stderr(runs):
    result = questtrain("plot", "persistence", "sweep", cwd=runs)
    assert (result.returncode, result.stdout) == (0, "persistence.png\n")
    (line,) = result.stderr.splitlines()
    assert "sweep/started" in line
    assert "questtrain diagnose run=sweep/started what=persistence" in line


BAD_INPUT = [
    (["aligment", "sweep"], ["unknown figure 'aligment'", "fig2", "Did you mean 'alignment'?"]),
    (["--json"], ["name a figure: law, alignment, lsq"]),
    (["mask"], ["no runs given"]),
    (["mask", "swep"], ["swep: there is no such folder", "Did you mean 'sweep'?"]),
    (["mask", "empty"], ["empty is not a run"]),
    (["mask", "sweep/started"], ["nothing to draw"]),
    (["mask", "sweep/damaged"], ["mask.json is damaged", "Make it anew"]),
    (["mask", "sweep", "-o", "m.jpg"], ["m.jpg", ".png, .pdf or .svg"]),
    (["mask", "sweep", "-o", "m"], [".png, .pdf or .svg"]),
    (["mask", "sweep", "-o", "sweep.png"], ["sweep.png cannot be written"]),
    (["mask", "sweep", "-o"], ["-o needs a file"]),
    (["mask", "sweep", "--output="], ["--output needs a file"]),
    (["mask", "sweep", "--jsn"], ["unknown option '--jsn'", "Did you mean '--json'?"]),
    (["mask", "sweep", "--json", "-o", "m.png"], ["--json prints and draws nothing"]),
    (["mask", "sweep", "-o", "m.md"], ["mask is no table", ".png, .pdf or .svg"]),
    (["all", "sweep", "--json"], ["--json prints one figure"]),
    (["all", "swep"], ["swep: there is no such folder"]),
    (["all", "sweep/started"], ["nothing to draw: these runs allow none"]),
    (["law", "none.csv"], ["none.csv: there is no such file"]),
    (["table1", "sweep/started"], ["none of the runs is complete"]),
    (["curves", "sweep/started"], ["nothing to draw: curves needs", "sweep fig11_curves"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD_INPUT, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_message_and_exit_code_2(runs, capsys, words, parts):
    (runs / "empty").mkdir()
    (runs / "sweep.png").mkdir()
    if "sweep/damaged" in words:
        damaged = make_run(runs / "sweep" / "damaged")
        (damaged / "diagnostics" / "mask.json").write_text("{")
    assert main(["plot", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err


def test_tables_are_text_where_the_suffix_says_so(runs, capsys):
    table = write_law_table(Path("runs.csv"))
    for suffix, start in ((".md", "**Fitted"), (".tex", "% needs"), (".csv", "precision,")):
        assert main(["plot", "table1", str(table), "-o", f"eff{suffix}"]) == 0
        assert Path(f"eff{suffix}").read_text().startswith(start)
    assert capsys.readouterr().out == "eff.md\neff.tex\neff.csv\n"


def test_all_draws_what_the_runs_allow_and_says_what_not(runs):
    """As PNG and PDF; of a run without a record, each message once."""
    write_law_table(Path("runs.csv"))
    result = questtrain("plot", "all", "runs.csv", "-o", "figures", cwd=runs)
    assert result.returncode == 0
    made = sorted(Path("figures").iterdir())
    assert result.stdout.split() == sorted(map(str, made), key=result.stdout.index)
    names = {path.stem for path in made}
    assert {"law", "efficiency", "memory", "table1"} <= names
    assert not names & {"curves", "mask", "pact", "table4"}
    assert {path.suffix for path in made if path.stem == "table1"} == {".png", ".pdf", ".md"}
    messages = result.stderr.splitlines()
    assert any(line.startswith("not drawn: pact (fig12): nothing to draw") for line in messages)
    assert len(messages) == len(set(messages))


def test_help_lists_every_figure(capsys):
    assert main(["plot", "--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page and figure.text in page for name, figure in FIGURES.items())
    assert main(["plot"]) == 0
    assert capsys.readouterr().out == page


def test_neither_torch_nor_pyplot_is_imported(runs):
    """And matplotlib only where something is drawn."""
    probe = (
        "import sys; from questtrain.cli.plot import main; main(['mask', 'sweep', '--json']);"
        "assert 'matplotlib' not in sys.modules; main(['mask', 'sweep']);"
        "sys.exit(bool({'torch', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", probe]
    result = subprocess.run(command, cwd=runs, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
