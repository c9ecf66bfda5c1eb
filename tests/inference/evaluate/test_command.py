"""``questtrain eval``: what it prints and keeps, and one message for what is wrong."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from questtrain.cli.arguments import Arguments, own_config
from questtrain.cli.eval import HEEDED_BY, UNSAID, EvalConfig
from questtrain.cli.main import main
from questtrain.inference.evaluate import tasks

pytest.importorskip("lm_eval")
import lm_eval.tasks

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def run(trained: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run without evaluations."""
    return shutil.copytree(trained("w4a4"), tmp_path / "run")


@pytest.fixture
def places(task_folder: Path) -> list[str]:
    return [f"include_path={task_folder}", f"datasets={task_folder}", "device=cpu"]


@pytest.fixture
def evaluate(places: list[str], capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """The command with ``--json``, and what it prints."""

    def evaluated(*words: str) -> dict[str, Any]:
        assert main(["eval", *places, *words, "--json"]) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return evaluated


def columns(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "run.json").read_text())["evaluations"]
    return found


def content(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_results_are_printed_kept_and_in_the_table_of_runs(run, places, capsys, tmp_path):
    assert main(["eval", f"run={run}", "tasks=endings,texts", "packed=true", *places]) == 0
    printed, told = capsys.readouterr()
    assert "it/s" not in told  # bars are for terminals
    file = Path(printed.splitlines()[-1])
    assert file.parent == run / "evaluations"
    written = json.loads(file.read_text())
    assert written["step"] == 40
    assert written["packed"] is True
    assert written["versions"]["lm_eval"] == importlib.metadata.version("lm_eval")
    found = written["tasks"]["endings"]["metrics"]["acc_norm"]
    assert set(found) == {"value", "stderr", "higher_is_better"}
    numbers = [f"{found['value']:.4f}", f"{found['stderr']:.4f}", "0", "16"]
    assert ["endings", "acc_norm", *numbers] in [line.split() for line in printed.splitlines()]
    assert columns(run)["endings.acc_norm"] == found["value"]
    assert columns(run)["endings.acc_norm_stderr"] == found["stderr"]

    assert main(["runs", str(run)]) == 0
    table = capsys.readouterr().out
    assert "endings" in table
    assert f"{found['value']:.4f}" in table
    assert main(["runs", str(run), "--csv", str(tmp_path / "runs.csv")]) == 0
    words = ["runs", str(tmp_path / "runs.csv"), f"endings.acc_norm={found['value']}", "--json"]
    capsys.readouterr()
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert float(row["texts.bits_per_byte"]) == columns(run)["texts.bits_per_byte"]


def test_a_part_and_other_shots_leave_the_columns_of_the_whole(run, evaluate):
    evaluate(f"run={run}", "tasks=endings")
    whole = columns(run)
    limited = evaluate(f"run={run}", "tasks=endings", "limit=3", "num_fewshot=1")
    assert limited["tasks"]["endings"]["samples"] == 3
    assert {name: columns(run)[name] for name in whole} == whole
    assert "endings_1shot_first3.acc" in columns(run)
    assert len(list((run / "evaluations").glob("step_*.json"))) == 2


def test_bits_per_byte_asked_in_other_ways_are_other_columns(run, evaluate, tmp_path):
    """The file says in which: examples of a task's questions, windows over a text."""
    (tmp_path / "book.txt").write_text("import os\n" * 80)
    words = (f"run={run}", "tasks=endings:bpb,endings,bpb:book.txt", "limit=3")
    words = tuple(word.replace("bpb:book", f"bpb:{tmp_path}/book") for word in words)
    own = evaluate(*words)["tasks"]
    whole = columns(run)
    other = evaluate(*words, "num_fewshot=1", "stride=5")["tasks"]
    assert {name: columns(run)[name] for name in whole} == whole
    for found, shots, stride, column, text in (
        (own, 0, 32, "bpb.endings_first3", "bpb.book"),
        (other, 1, 5, "bpb.endings_1shot_first3", "bpb.book_stride5"),
    ):
        answers, book = found["endings:bpb"], found["bpb:book"]
        assert (answers["column"], answers["num_fewshot"]) == (column, shots)
        assert (book["column"], book["stride"]) == (text, stride)
        assert book["files"] == [str(tmp_path / "book.txt")]
        for result in (answers, book):
            assert columns(run)[result["column"]] == result["metrics"]["bpb"]["value"]
    assert own["endings:bpb"]["metrics"] != other["endings:bpb"]["metrics"]


def test_the_footer_is_of_what_the_limit_left_out(run, places, capsys, tmp_path):
    (tmp_path / "book.txt").write_text("import os")
    words = ["eval", f"run={run}", *places[2:], "limit=0.5"]
    assert main([*words, f"tasks=bpb:{tmp_path}/book.txt"]) == 0
    assert "limit=" not in capsys.readouterr().out
    assert main([*words, f"tasks=endings,bpb:{tmp_path}/book.txt", *places]) == 0
    assert "of runs hold these results, endings_first8.\n" in capsys.readouterr().out


def test_an_earlier_checkpoint_is_no_part_of_the_row(run, evaluate):
    before = (run / "run.json").read_text()
    assert evaluate(f"run={run}", "tasks=endings", "step=20")["step"] == 20
    assert (run / "run.json").read_text() == before
    assert [file.name[:13] for file in (run / "evaluations").glob("*.json")] == ["step_00000020"]


def test_output_takes_the_results_elsewhere(run, evaluate, tmp_path):
    before = content(run)
    words = (f"run={run}", "tasks=endings", f"output={tmp_path / 'o'}", "samples=true")
    file = Path(evaluate(*words)["file"])
    assert content(run) == before
    assert file.parent == tmp_path / "o"
    lines = file.with_suffix(".samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc_id"] for line in lines] == list(range(16))


def test_an_export_is_as_good_as_its_run_and_stays_what_it_was(run, evaluate, tmp_path, capsys):
    export = tmp_path / "export"
    assert main(["export", f"run={run}", "format=packed", f"output={export}", "verify=false"]) == 0
    before = content(export)
    capsys.readouterr()
    of_export = evaluate(f"export={export}", "tasks=endings")
    of_run = evaluate(f"run={run}", "tasks=endings", "packed=true")
    assert of_export["tasks"] == of_run["tasks"]
    assert content(export) == before
    assert Path(of_export["file"]).parent == tmp_path / "export.evaluations"


def test_hellaswag_of_the_harness_from_a_local_copy_of_its_dataset(
    run, evaluate, tmp_path, monkeypatch
):
    """Its own YAML and code, on JSON lines in the dataset's form in ``datasets/OWNER/NAME``."""
    own = Path(lm_eval.tasks.__file__).parent / "hellaswag" / "hellaswag.yaml"
    (tmp_path / "tasks").mkdir()
    task = {"include": str(own), "task": "hellaswag"}  # alone: all tasks take seconds to list
    (tmp_path / "tasks" / "hellaswag.yaml").write_text(yaml.safe_dump(task))
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap.", "is ripping [step] tiles off.", "holds a cube.", "starts."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
        "split": "val",
        "split_type": "indomain",
        "label": "3",
    }
    folder = tmp_path / "datasets" / "Rowan" / "hellaswag"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{**row, "label": str(label)} for label in range(4)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.chdir(tmp_path)
    words = ("tasks=hellaswag", "include_path=tasks", "datasets=datasets", "samples=true")
    found = evaluate(f"run={run}", *words)
    assert found["tasks"]["hellaswag"]["metrics"]["acc"]["value"] == 0.25
    lines = Path(found["file"]).with_suffix(".samples.jsonl").read_text().splitlines()
    prompt = json.loads(lines[0])["arguments"][1]
    assert prompt == [
        "Roof shingle removal: A man is sitting on a roof. He",
        " is ripping tiles off.",
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run={run}", "tasks=endigs"], "unknown task 'endigs'. Did you mean 'endings'?"),
        (["run={run}", "tasks=,"], "`questtrain eval --tasks` lists"),
        (["tasks=endings"], "run=DIR or export=DIR, and neither was given"),
        (["run={run}", "export={run}", "tasks=endings"], "and both were given"),
        (["run={run}x", "tasks=endings"], "Did you mean '{run}'?"),
        (["export={run}x", "tasks=endings"], "export={run}x: there is no such folder"),
        (["run={run}/figures", "tasks=endings"], "is not a run"),
        (["run={run}", "tasks=mine/quiz.yml"], "there is no task file mine/quiz.yml (searched"),
        (["run={run}", "tasks=endings", "stride=8"], "stride=8 is of texts (suite=bpb files="),
        (["run={run}", "suite=core", "num_fewshot=1"], "num_fewshot=1 is of tasks of lm-eval"),
        (["run={run}", "tasks=endings", "limit=1.5"], "limit=1.5 is no number of documents"),
        (["run={run}", "tasks=endings", "limit=0"], "limit=0.0 must be positive"),
        (["run={run}", "tasks=endings", "step=7"], "no checkpoint of step 7"),
        (["run={run}", "tasks=endings", "packed=ture"], "Did you mean 'true'?"),
        (["run={run}", "tasks=endings", "include_path={run}y"], "there is no such folder"),
        (["run={run}", "tasks=endings", "output={run}/run.json"], "/run.json is a file. output="),
        (["run={run}", "suite=bpb", "tasks=endings", "samples=true"], "samples=true is of the own"),
        (["run={run}", "tasks=endings", "text_field=body"], "text_field=body is of texts"),
        (["run={run}/checkpoints", "tasks=endigs"], "is not a run"),
        (["run={run}", "tasks=endigs", "step=7"], "no checkpoint of step 7"),
        (["--tasks", "a*", "b*"], "--tasks takes one pattern"),
        (["--tasks", "endigs"], "no task is called like 'endigs'. Did you mean 'endings'?"),
        (["--tasks", "--jsn"], "Did you mean '--json'?"),
    ],
)
def test_bad_input(run, places, capsys, words, part, monkeypatch):
    """One message, exit code 2, and no file more."""
    monkeypatch.setattr(tasks, "_manager", only_own(tasks._manager))
    before = content(run)
    words = [word.format(run=run) for word in words]
    assert main(["eval", *(places[:1] if "--tasks" in words else places), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert part.format(run=run) in error
    assert content(run) == before


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("include_path={run}", "include_path={run}"),
        ("datasets=no", "datasets=no"),
        ("seed=1", "seed=1"),
        ("bootstrap=9", "bootstrap=9"),
        ("samples=true", "samples=true"),
    ],
)
def test_a_setting_that_texts_do_not_heed_is_refused(run, capsys, tmp_path, word, key):
    (tmp_path / "book.txt").write_text("import os")
    words = [f"run={run}", f"tasks=bpb:{tmp_path}/book.txt", word.format(run=run)]
    error = refused(words, capsys)
    assert error.startswith(f"error: {key.format(run=run)} is of ")
    assert error.endswith("none is evaluated: leave it out.")


def test_what_is_said_to_be_unsaid_is_the_default():
    defaults = own_config(Arguments(), "eval", EvalConfig)
    assert {key: getattr(defaults, key) for key in HEEDED_BY} == {
        key: UNSAID.get(key) for key in HEEDED_BY
    }


def test_a_task_file_that_is_no_yaml_is_named(run, places, capsys, tmp_path, monkeypatch):
    """The harness passes over it: its task is unknown, and the user would not learn why."""
    monkeypatch.setattr(tasks, "_manager", only_own(tasks._manager))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "good.yaml").write_text("task: good\ndoc_to_text: !function own.text\n")
    (tmp_path / "own" / "quiz.yaml").write_text("task: quiz\nmetric_list: [acc\n")
    words = [f"run={run}", "tasks=quiz", *places, f"include_path={tmp_path}/own"]
    error = refused(words, capsys)
    assert (
        f"unknown task 'quiz'. {tmp_path}/own/quiz.yaml, line 3, column 1: no YAML: expected"
        in error
    )
    assert "That file is passed over. There are" in error


def only_own(manager: Callable[..., Any]) -> Callable[..., Any]:
    """The harness' task manager without the harness' tasks, which take seconds to list."""
    return lambda include_path, include_defaults=True: manager(include_path, False)


def test_the_names_of_tasks(task_folder, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "_manager", only_own(tasks._manager))
    assert main(["eval", "--tasks", f"include_path={task_folder}", "*endings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["endings", "other_endings"]
    gone = refused(["--tasks", f"include_path={task_folder}y"], capsys)
    assert gone.startswith(f"error: include_path={task_folder}y: there is no such folder")
    assert main(["eval", "--tasks", f"include_path={task_folder}"]) == 0
    assert capsys.readouterr().out.split() == [
        "answers", "both", "endings", "other_endings", "texts",
    ]  # fmt: skip


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["eval", *words]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_data_that_is_missing(run, tmp_path, capsys, monkeypatch):
    """Of the hub: what to download, where there is a network, and how to bring it. Of a file."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    task = {
        "task": "arc",
        "dataset_path": "allenai/nothing_here",
        "dataset_name": "ARC-Easy",
        "output_type": "multiple_choice",
        "test_split": "test",
    }
    (tmp_path / "arc.yaml").write_text(yaml.safe_dump(task))
    words = [f"run={run}", "tasks=arc", f"include_path={tmp_path}", "device=cpu"]
    error = refused(words, capsys)
    assert "the dataset allenai/nothing_here, configuration ARC-Easy, which is neither" in error
    assert "offline mode is on" in error
    download = "hf download allenai/nothing_here --repo-type dataset --local-dir"
    assert (
        f"`{download} DATA/allenai/nothing_here`; bring DATA here and give datasets=DATA" in error
    )
    (tmp_path / "allenai" / "nothing_here").mkdir(parents=True)
    assert "the data of the task arc (allenai/nothing_here in " in refused(
        [*words, f"datasets={tmp_path}"], capsys
    )
    local = {**task, "dataset_path": "json", "dataset_kwargs": {"data_files": "gone.jsonl"}}
    del local["dataset_name"]
    (tmp_path / "arc.yaml").write_text(yaml.safe_dump(local))
    assert "the data of the task arc (json): FileNotFoundError: Unable to find" in refused(
        words, capsys
    )
    assert not (run / "evaluations").exists()


def test_an_export_of_another_program(run, places, tmp_path, capsys):
    output = tmp_path / "hf"
    words = ["export", f"run={run}", "format=hf", f"output={output}", "verify=false"]
    assert main(words) == 0
    (output / "certificate.json").touch()  # made by running transformers, which takes seconds
    assert "is an export for another program" in refused(
        [f"export={output}", "tasks=endings", *places], capsys
    )


def test_without_the_harness(run, places, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    error = refused([f"run={run}", "tasks=endings", *places], capsys)
    assert error.endswith(
        "not installed: pip install '.[eval]' in the folder of questtrain's sources."
    )
