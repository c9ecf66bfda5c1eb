"""``questtrain runs``, ``fit`` and ``plan``: words, files, exit codes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.scaling.law import read_law
from tests.scaling.synthetic import grid


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """A working folder with ``runs.csv``, a grid from a known law."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{p.name},{p.params},{p.tokens},{p.precision},{p.loss}" for p in grid(noise=0.003)]
    head = "name,non_embedding_params,tokens,precision,val_loss"
    (tmp_path / "runs.csv").write_text("\n".join([head, *rows]) + "\n")
    return tmp_path


def output(capsys, *words) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_fit_prints_the_law_and_its_intervals(table, capsys):
    printed = output(capsys, "fit", "runs.csv", "bootstrap=50")
    for part in ("L(N, D, P) = A/(N·eff(P))^α + B/D^β + E", "90% interval", "W4A4", "BF16"):
        assert part in printed
    assert "72 points; rms of the log residuals 0.2" in printed or "0.3" in printed
    assert not Path("law.json").exists()


def test_fit_writes_json_and_picture_where_it_is_told(table, capsys):
    output(capsys, "fit", "runs.csv", "bootstrap=20", "--json", "out/law.json", "-o", "out/law.svg")
    law = read_law(Path("out/law.json"))
    assert law.eff["4"].value == pytest.approx(0.7, rel=0.1)
    assert law.eff["4"].low < law.eff["4"].value < law.eff["4"].high
    assert Path("out/law.svg").read_text().startswith("<?xml")


def test_fit_json_without_a_file_prints_it(table, capsys):
    words = ("fit", "runs.csv", "--form", "chinchilla", "bootstrap=0", "--json")
    record = json.loads(output(capsys, *words))
    assert record["form"] == "chinchilla"
    assert record["points"] == 18
    assert record["alpha"]["low"] is None


def test_fit_says_what_it_leaves_out(table, capsys, caplog):
    with Path("runs.csv").open("a") as file:
        file.write("again,30500000.0,762500000.0,4,3.9\n")
    printed = output(capsys, "fit", "runs.csv", "bootstrap=0")
    assert "2 runs of one point, all kept" in caplog.text
    assert "warning: again lies" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fit", "run.csv"], "Did you mean 'runs.csv'?"),
        (["fit", "runs.csv", "from=quest"], "Did you mean 'form'?"),
        (["fit", "runs.csv", "form=chincilla"], "Did you mean 'chinchilla'?"),
        (["fit", "runs.csv", "bootstrap=many"], "bootstrap"),
        (["fit", "form=quest"], "no runs given"),
        (["fit", "runs.csv", "--picture"], "unknown option '--picture'"),
        (["fit", "runs.csv", "--forn=quest"], "Did you mean '--form'?"),
        (["plan", "flops=1e20", "--jsn"], "Did you mean '--json'?"),
        (["runs", "runs.csv", "--csf=x"], "Did you mean '--csv'?"),
        (["fit", "runs.csv", "-o", "law.jpg"], "end the file's name in"),
        (["fit", "runs.csv", "-o"], "-o needs a file"),
        (["fit", "runs.csv", "--json", "runs.csv/law.json"], "cannot be written"),
        (["fit", "empty"], "empty is not a run"),
        (["plan", "memory=1.6XB", "tokens=1B"], "memory=1.6XB: write a number and a unit"),
        (["plan", "memory=1GB", "tokens=many"], "tokens=many"),
        (["plan", "memory=1GB"], "give memory=… and tokens=…"),
        (["plan", "memry=1GB", "tokens=1B"], "Did you mean 'memory'?"),
        (["plan", "law.json", "flops=1e20"], "no such file"),
        (["plan", "flops=1e20", "precisions=4,5"], "unknown precision of this law '5'"),
        (["runs", "run.csv"], "Did you mean 'runs.csv'?"),
        (["runs", "runs.csv", "precison=4"], "Did you mean 'precision'?"),
        (["runs", "runs.csv", "--sort", "loss"], "unknown column 'loss'"),
        (["runs", "runs.csv", "--sort"], "--sort needs a column"),
        (["runs", "runs.csv", "--csv", "runs.csv/x.csv"], "cannot be written"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(table, capsys, words, part):
    (table / "empty").mkdir()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def test_no_reference_precision(table, capsys):
    lines = [line for line in Path("runs.csv").read_text().splitlines() if ",16," not in line]
    Path("runs.csv").write_text("\n".join(lines))
    assert main(["fit", "runs.csv"]) == 2
    assert "no run of the reference precision 16 (bits=bf16)" in capsys.readouterr().err


def test_runs_prints_filters_sorts_and_exports(table, capsys):
    printed = output(capsys, "runs", "runs.csv", "precision=4,8", "name=*-100-*")
    assert "12 runs: 12 completed" in printed
    rows = json.loads(
        output(capsys, "runs", "runs.csv", "precision=16", "--sort=val_loss", "--json")
    )
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == sorted(losses)
    assert output(capsys, "runs", "runs.csv", "precision=4", "--csv", "four.csv") == "four.csv\n"
    with Path("four.csv").open() as file:
        assert {row["precision"] for row in csv.DictReader(file)} == {"4"}
    assert output(capsys, "runs", "runs.csv", "--jsonl", "all.jsonl") == "all.jsonl\n"
    assert output(capsys, "fit", "all.jsonl", "bootstrap=0") == output(
        capsys, "fit", "runs.csv", "bootstrap=0"
    )


def test_filters_compare_numbers_by_value(table, capsys):
    rows = json.loads(output(capsys, "runs", "runs.csv", "tokens=762.5e6", "--json"))
    assert len(rows) == 4
    assert json.loads(output(capsys, "runs", "runs.csv", "problem=null", "--json"))
    assert json.loads(output(capsys, "runs", "runs.csv", "tokens=1", "--json")) == []


def test_plan_by_the_paper_s_law_a_file_and_runs(table, capsys):
    words = ("memory=1.6GB", "tokens=80B", "precisions=1,2,4,8,16")
    printed = output(capsys, "plan", *words)
    assert "law: the paper's" in printed
    assert "best: W4A4, 3.2B parameters, 80B tokens" in printed
    assert "beyond the law's data" in printed
    output(capsys, "fit", "runs.csv", "bootstrap=20", "--json", "law.json")
    by_file = json.loads(output(capsys, "plan", "law.json", "flops=1e20", "--json"))
    assert by_file["law"] == "law.json"
    by_runs = json.loads(output(capsys, "plan", "runs.csv", "flops=1e20", "--json"))
    assert [c["precision"] for c in by_file["choices"]] == [
        c["precision"] for c in by_runs["choices"]
    ]
    assert by_file["choices"][0]["loss"] == pytest.approx(by_runs["choices"][0]["loss"])


@pytest.mark.parametrize("text", ["1600MB", "1.6e9", "1600000000", "1.6GB", "1.6gb"])
def test_units(table, capsys, text):
    record = json.loads(output(capsys, "plan", f"memory={text}", "tokens=8B", "--json"))
    assert record["choices"][0]["memory_bytes"] == pytest.approx(1.6e9)


@pytest.mark.parametrize("command", ["runs", "fit", "plan"])
def test_help_and_configuration(table, capsys, command):
    assert output(capsys, command, "--help").startswith(f"usage: questtrain {command}")
    if command != "runs":
        assert "null" in output(capsys, command, "--cfg", "job") or command == "fit"


def test_help_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys; from questtrain.cli.main import main; main(['fit', '--help']);"
        "main(['plan', '--help']); main(['runs', '--help']);"
        "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0


MARKUP = ("exp[old]", "[b]x", "a[/red]", ":cat:", "[link=file:///x]y")


@pytest.mark.parametrize("name", MARKUP)
def test_names_and_labels_are_shown_as_they_are(name, tmp_path, capsys, monkeypatch):
    """Brackets and colons in the user's text are no markup, whichever command prints them."""
    monkeypatch.chdir(tmp_path)
    columns = ("name", "non_embedding_params", "tokens", "precision", "val_loss")
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, p in enumerate(grid(precisions=["16", "4"], noise=0.002)):
            label = name if p.precision == "4" else p.precision
            writer.writerow([f"{name}{number}", p.params, p.tokens, label, p.loss])
    for words in (["runs", "t.csv"], ["fit", "t.csv", "bootstrap=0", "--json=law.json"]):
        assert main(words) == 0
        assert name in capsys.readouterr().out
    file_name = name.replace("/", "_")
    Path("law.json").rename(f"{file_name}.json")
    assert main(["plan", f"{file_name}.json", "memory=1GB", "tokens=1B"]) == 0
    assert file_name in capsys.readouterr().out
    assert main(["info", "model=30k", f"name='{file_name}'"]) == 0
    assert file_name in capsys.readouterr().out


def test_plan_knows_precisions_in_other_spellings(capsys):
    assert main(["plan", "memory=1GB", "tokens=1B", "precisions=w4a4,8.0,BF16", "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert sorted(choice["precision"] for choice in choices) == ["16", "4", "8"]
