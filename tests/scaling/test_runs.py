"""The runs table: folders in every state, tables of one's own, points."""

import json
import math
from dataclasses import asdict

import pytest
import yaml

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.scaling.points import law_points
from questtrain.scaling.runs import export_rows, read_run, read_runs, read_table

RECORD = {
    "status": "completed",
    "model": "30M",
    "non_embedding_params": 30_482_560,
    "bits": "w4a4",
    "method": "quest",
    "dataset": "c4",
    "tokens": 3_000_000_000,
    "val_loss": 3.27,
}


def make(folder, record=None, *words):
    """A run folder with a configuration, and a record where one is given."""
    folder.mkdir(parents=True)
    config = train_config(parse_arguments(["model=30M", f"name={folder.name}", *words]))
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    if record is not None:
        (folder / "run.json").write_text(json.dumps({"name": folder.name, **record}))
    return folder


def test_a_switch_in_a_table(tmp_path):
    header = "non_embedding_params,tokens,bits,method,switch_from,switch_at,val_loss\n"
    (tmp_path / "t.csv").write_text(header + "1,2,w4a4,quest,bf16,0.6,3\n1,2,w4a4,quest,,,3\n")
    assert [run.precision for run in read_runs([str(tmp_path / "t.csv")])] == ["4-bf16@0.6", "4"]
    (tmp_path / "t.csv").write_text(header + "1,2,w4a4,quest,bf16,,3\n")
    with pytest.raises(UserError, match="line 2: switch_from='bf16' and switch_at=None are no"):
        read_runs([str(tmp_path / "t.csv")])


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([], "stopped at step 60, or still training; the same command begins anew: nothing is"),
        ([40, 69], "stopped at step 69, or still training; the same command goes on from step 69"),
        ([40], "stopped at step 60, or still training; the same command goes on from step 40"),
    ],
)
def test_an_unfinished_run_goes_on_from_its_checkpoint(tmp_path, saved, words):
    started = make(tmp_path / "started")
    (started / "metrics.jsonl").write_text('{"step": 60, "train_loss": 5.5}\n')
    for step in saved:
        (started / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (run,) = read_runs([str(started)])
    assert (run.status, run.problem.startswith(words)) == ("unfinished", True)


def test_runs_in_every_state_are_rows(tmp_path):
    make(tmp_path / "a-done", RECORD)
    make(tmp_path / "b-diverged", RECORD | {"status": "diverged", "val_loss": None})
    started = make(tmp_path / "c-started", None, "bits=w2a2", "method=lsq")
    (started / "metrics.jsonl").write_text(
        '{"step": 10, "train_loss": 5.5}\n{"step": 20, "val_loss": 5.0}\n{"step": 30, "tr'
    )
    (make(tmp_path / "d-torn") / "run.json").write_text('{"name": "d-t')
    make(tmp_path / "e-empty", {"status": "completed"})
    make(tmp_path / "f-nan", RECORD | {"val_loss": None})
    make(tmp_path / "g-odd", RECORD | {"bits": "w99a99"})
    (make(tmp_path / "h-config") / "config.yaml").write_text("[")
    runs = {run.name: run for run in read_runs([str(tmp_path)])}
    assert {name: run.status for name, run in runs.items()} == {
        "a-done": "completed",
        "b-diverged": "diverged",
        "c-started": "unfinished",
        "d-torn": "damaged",
        "e-empty": "damaged",
        "f-nan": "damaged",
        "g-odd": "damaged",
        "h-config": "damaged",
    }
    assert runs["a-done"].val_loss == 3.27
    assert runs["a-done"].precision == "4"
    assert runs["b-diverged"].val_loss is None
    unfinished = runs["c-started"]
    assert unfinished.precision == "2-lsq"
    assert unfinished.val_loss is None, "not the final one"
    assert unfinished.record["val_loss"] == 5.0
    assert unfinished.record["non_embedding_params"] == 30_482_560
    assert "step 20" in unfinished.problem
    for name, part in {"d-torn": "cannot be read", "f-nan": "'val_loss' holds None"}.items():
        assert part in runs[name].problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokens": "many"}, "'tokens' holds 'many'; it should be a valid number"),
        ({"tokens": None}, "'tokens' holds None"),
        ({"tokens": 0}, "'tokens' holds 0; it should be greater than or equal to 1"),
        ({"non_embedding_params": -5}, "'non_embedding_params' holds -5"),
        ({"non_embedding_params": [1]}, "'non_embedding_params' holds [1]"),
        ({"val_loss": "3.2"}, "'val_loss' holds '3.2'"),
        ({"val_loss": -1.0}, "'val_loss' holds -1.0"),
        ({"val_loss": float("nan")}, "'val_loss' holds nan"),
        (
            {"status": "finished"},
            "'status' holds 'finished'; it should be 'completed' or 'diverged'",
        ),
        ({"status": 1}, "'status' holds 1; it should be 'completed' or 'diverged'"),
        ({"name": ["a"]}, "'name' holds ['a']; it should be a valid string"),
        ({"method": None}, "'method' holds None; it should be a valid string"),
        ({"dataset": {"a": 1}}, "'dataset' holds {'a': 1}; it should be a valid string"),
        ({"wall_seconds": "long"}, "'wall_seconds' holds 'long'"),
        ({"hadamard": "yes"}, "'hadamard' holds 'yes'; it should be a valid boolean"),
        ({"trust_scale": "huge"}, "'trust_scale' holds 'huge'"),
    ],
)
def test_one_damaged_record_hides_no_other(tmp_path, capsys, change, problem):
    """It is a row that says what is wrong; the others make the table and the points."""
    make(tmp_path / "a", RECORD)
    make(tmp_path / "b", RECORD | change)
    runs = {run.source.rsplit("/", 1)[1]: run for run in read_runs([str(tmp_path)])}
    assert (runs["a"].status, runs["b"].status) == ("completed", "damaged")
    assert problem in runs["b"].problem
    points, remarks = law_points(list(runs.values()))
    assert [point.name for point in points] == ["a"]
    assert problem in "\n".join(remarks)
    assert main(["runs", str(tmp_path), "--sort", "val_loss"]) == 0
    assert "2 runs: 1 completed, 1 damaged" in capsys.readouterr().out


def test_damaged_rows_of_metrics_hide_no_run(tmp_path):
    started = make(tmp_path / "a")
    (started / "metrics.jsonl").write_text(
        '{"step": 10, "train_loss": 5.0}\n{"train_loss": 1}\n[]\n'
    )
    (run,) = read_runs([str(tmp_path)])
    assert (run.status, run.record["train_loss"], len(run.metrics())) == ("unfinished", 5.0, 1)


def test_numbers_of_a_record(tmp_path):
    run = read_run(make(tmp_path / "r", RECORD | {"trust_scale": "inf", "hadamard": True}))
    assert run.number("trust_scale") == float("inf")
    assert run.number("hadamard") is None
    assert run.number("dataset") is None
    assert run.number("lr_scale") is None
    assert run.text("dataset") == "c4"


def test_a_table_s_precisions_are_labels(tmp_path):
    """In CSV and JSON lines; an empty cell or pandas' NaN is none, and `bits` stands in."""
    row = {"non_embedding_params": 3e7, "tokens": 3e9, "val_loss": 3.2}
    given = [{"precision": 16.0}, {"precision": "W4A4"}, {"precision": math.nan, "bits": "W2A2"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | more) + "\n" for more in given))
    assert [run.precision for run in read_runs([str(tmp_path / "t.jsonl")])] == ["16", "4", "2"]
    (tmp_path / "t.csv").write_text(
        "non_embedding_params,tokens,precision,bits,val_loss\n"
        "3e7,3e9,16.0,,3.2\n3e7,3e9,1.58,,3.4\n3e7,3e9,,bf16,3.2\n"
    )
    assert [run.precision for run in read_runs([str(tmp_path / "t.csv")])] == ["16", "1.58", "16"]


def test_bits_of_a_table_that_cannot_be_are_named_with_their_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("non_embedding_params,tokens,bits,val_loss\n3e7,3e9,w4a4,3\n3e7,3e9,w9a9,3\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3: unknown bits 'w9a9'"):
        read_runs([str(path)])


def test_runs_at_any_depth(tmp_path):
    """In a run's own folder, in folders of folders, behind a link, and each once; what a run keeps
    is not walked, and links in a circle end."""
    places = ["exp", "exp/seed1", "exp/seed1/again", "group/day/x", "checkpoints/y", ".hidden"]
    for place in places:
        make(tmp_path / "runs" / place, RECORD | {"name": place})
    for inside in ("checkpoints/step_00000001", "figures", "wandb/run-1"):
        make(tmp_path / "runs" / "exp" / inside, RECORD | {"name": "none of these"})
    make(tmp_path / "runs" / "group" / ".git" / "objects", RECORD)
    make(tmp_path / "elsewhere" / "linked", RECORD | {"name": "linked"})
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "group" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "unreadable").mkdir(mode=0)
    names = [run.name for run in read_runs([str(tmp_path / "runs")], nested=True)]
    assert sorted(names) == sorted([*places, "linked"])
    assert names.index("exp") + 1 == names.index("exp/seed1")
    below = [run.name for run in read_runs([str(tmp_path / "runs" / "exp")], nested=True)]
    assert below == places[:3]
    assert [run.name for run in read_runs([str(tmp_path / "runs" / "exp")])] == ["exp"]


def test_only_nested_reads_go_into_sweeps(tmp_path):
    make(tmp_path / "alone", RECORD)
    make(tmp_path / "sweep" / "point", RECORD)
    assert [run.name for run in read_runs([str(tmp_path)])] == ["alone"]
    assert [run.name for run in read_runs([str(tmp_path)], nested=True)] == ["alone", "point"]


def test_a_csv_of_one_s_own(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "name,non_embedding_params,tokens,precision,val_loss,note\n"
        "one,30e6,3e9,4,3.27,\n,5e7,5e9,fp4,3.1,second\n"
    )
    first, second = read_runs([str(path)])
    assert (first.name, first.status, first.precision, first.val_loss) == (
        "one",
        "completed",
        "4",
        3.27,
    )
    assert "note" not in first.record
    assert second.name == "runs.csv:3"
    assert second.number("tokens") == 5e9
    assert second.metrics() == []


def test_an_exported_table_gives_the_same_points(tmp_path):
    """Folders → JSON lines → points: nothing is lost; and a run given twice counts once."""
    make(tmp_path / "runs" / "a", RECORD)
    make(tmp_path / "runs" / "b", RECORD | {"bits": "bf16", "method": "none", "val_loss": 3.2})
    make(tmp_path / "runs" / "c", RECORD | {"status": "diverged"})
    runs = read_runs([str(tmp_path / "runs")])
    table = tmp_path / "runs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in export_rows(runs)))
    assert law_points(read_table(table))[0] == law_points(runs)[0]
    both, _ = law_points(read_runs([str(tmp_path / "runs"), str(table)]))
    assert len(both) == 2


def test_bits_can_stand_for_the_precision(tmp_path):
    path = tmp_path / "runs.jsonl"
    row = {"non_embedding_params": 1e6, "tokens": 1e8, "val_loss": 4.0, "bits": "w4a4"}
    path.write_text(json.dumps(row | {"method": "lsq"}) + "\n\n" + json.dumps(row) + "\n")
    assert [run.precision for run in read_table(path)] == ["4-lsq", "4"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("no.csv", None, ["no.csv", "no such file"]),
        ("a.csv", "", ["holds no runs"]),
        ("a.csv", "non_embedding_params,tokens,precision,val_loss\n", ["holds no runs"]),
        (
            "a.csv",
            "non_embedding_params,tokens,precison,val_loss\n1,2,4,3\n",
            ["a.csv, line 2: no precision", "Did you mean 'precison'"],
        ),
        (
            "a.csv",
            "non_embedding_params,tokens,precision,val_loss\n1,2,4,3\n1,2,4,-3\n",
            ["line 3: val_loss='-3' must be a positive number"],
        ),
        (
            "a.csv",
            "non_embedding_params,tokens,precision,val_loss\n1,2,4,nan\n",
            ["line 2: val_loss='nan'"],
        ),
        (
            "a.csv",
            "non_embedding_params,tokens,precision,val_loss\n1,,4,3\n",
            ["line 2: no tokens"],
        ),
        (
            "a.csv",
            "non_embedding_params,tokens,precision,val_loss\n1,2,4\n",
            ["line 2: not as many cells as columns"],
        ),
        (
            "a.csv",
            "non_embedding_params,tokens,precision,val_loss\n1,2,4,3,5\n",
            ["line 2: not as many cells as columns"],
        ),
        ("a.jsonl", "{}\n{\n", ["line 2 is no JSON"]),
        ("a.jsonl", "[1]\n", ["line 1 is no object"]),
        ("a.jsonl", '{"tokens": true}\n', ["line 1: no non_embedding_params"]),
        ("a.csv", b"\xff\xfe\x00", ["cannot be read"]),
    ],
)
def test_tables_that_are_refused(tmp_path, name, content, parts):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_runs([str(path)])
    for part in parts:
        assert part in str(error.value)


def test_points_say_what_they_leave_out_and_what_occurs_twice(tmp_path):
    make(tmp_path / "a", RECORD)
    make(tmp_path / "b", RECORD | {"val_loss": 3.29})
    make(tmp_path / "c", RECORD | {"status": "diverged"})
    make(tmp_path / "d", RECORD | {"dataset": "stdlib", "tokens": 1e9})
    points, remarks = law_points(read_runs([str(tmp_path)]))
    assert [p.name for p in points] == ["a", "b", "d"]
    said = "\n".join(remarks)
    assert "left out: c is diverged" in said
    assert "2 runs of one point, all kept (W4A4, 30.5M parameters, 3,000.0M tokens)" in said
    assert "a 3.2700, b 3.2900" in said
    assert "several values of dataset (c4, stdlib): their losses may not compare" in said


def test_runs_of_different_data_under_one_name_are_named(tmp_path):
    """By the data's hash; records of earlier versions have none, and are no data set by that."""
    for i, corpus in enumerate(("a" * 64, "a" * 64, "b" * 64, None)):
        hashed = {} if corpus is None else {"data_sha256": corpus}
        make(tmp_path / f"r{i}", RECORD | {"tokens": 10 ** (6 + i), "dataset": "text"} | hashed)
    make(tmp_path / "other", RECORD | {"data_sha256": "c" * 64})
    _, remarks = law_points(read_runs([str(tmp_path)]))
    said = (
        "the runs on text are of 2 different data sets (data_sha256: 2 of aaaaaaaa, 1 of bbbbbbbb):"
        " their losses may not compare"
    )
    assert said in remarks
    assert not any("on c4" in remark for remark in remarks)
    table = tmp_path / "runs.csv"
    columns = ("name", "non_embedding_params", "tokens", "precision", "val_loss", "data_sha256")
    rows = [("x", 10**6, 10**8, 4, 3.1, "d" * 64), ("y", 10**6, 10**9, 4, 2.9, "e" * 64)]
    table.write_text("\n".join(",".join(map(str, row)) for row in (columns, *rows)) + "\n")
    _, remarks = law_points(read_runs([str(table)]))
    assert any("2 different data sets" in remark for remark in remarks), "without a name, too"


def test_runs_that_repeat_their_data_are_named(tmp_path):
    for i, epochs in enumerate((None, 0.3, 4, 4.1, 60)):
        repeated = {} if epochs is None else {"epochs": epochs}
        make(tmp_path / f"r{i}", RECORD | {"tokens": 10 ** (6 + i)} | repeated)
    _, remarks = law_points(read_runs([str(tmp_path)]))
    (said,) = (remark for remark in remarks if "passed more than 4 times" in remark)
    assert said.startswith("2 of the runs passed more than 4 times over their data (r3, r4)")


def test_settings_that_the_label_does_not_hold_are_named(tmp_path):
    """A scan of the trust scale is one precision to the law: it says so."""
    for t in (1.1, 1.3):
        make(tmp_path / f"t{t}", RECORD | {"bits": "w1a1", "trust_scale": t, "val_loss": 3 + t})
    make(tmp_path / "other", RECORD | {"trust_scale": 1.0667})
    _, remarks = law_points(read_runs([str(tmp_path)]))
    named = "the runs are of several values of trust_scale (1.1, 1.3): all of them count as W1A1"
    assert named in remarks
    assert not any("1.0667" in remark for remark in remarks)


def test_scales_that_are_stored_otherwise_are_named(tmp_path):
    """Null says fp32 and rows, in records of earlier versions too."""
    same = {"scale_dtype": None, "group_size": None}
    for folder, stored in (("other", {"scale_dtype": "float16", "group_size": 32}), ("same", same)):
        for i, settings in enumerate(({}, stored)):
            make(tmp_path / folder / f"r{i}", RECORD | {"val_loss": 3 + i} | settings)
    remarks = {
        folder: "\n".join(law_points(read_runs([str(tmp_path / folder)]))[1])
        for folder in ("other", "same")
    }
    for column, values in {"scale_dtype": "float16, float32", "group_size": "32, rows"}.items():
        assert f"{column} ({values})" in remarks["other"]
        assert column not in remarks["same"]


def test_no_complete_run(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"none of the runs is complete\.\nleft out: a is unfinished"
    ):
        law_points(read_runs([str(tmp_path)]))
