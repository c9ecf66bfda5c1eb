"""Files of evaluations, and the columns that they give a run's row."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from questtrain.errors import UserError
from questtrain.scaling.runs import export_rows, read_runs
from questtrain.store.evaluations import (
    FOLDER,
    Evaluation,
    Metric,
    TaskResult,
    column_of,
    evaluated_columns,
    now,
    read_evaluations,
    record_evaluation,
)

RECORD = {
    "name": "one",
    "status": "completed",
    "bits": "w4a4",
    "method": "quest",
    "non_embedding_params": 1000,
    "tokens": 100_000,
    "steps": 20,
    "val_loss": 3.5,
    "of_another_version": [1],
}


def evaluation(column: str = "hellaswag", step: int = 20, **metrics: float) -> Evaluation:
    named = {name: Metric.of(value, 0.01, True) for name, value in metrics.items()}
    return Evaluation(
        suite="lm-eval",
        source="one",
        step=step,
        bits="w4a4",
        packed=True,
        device="CPU (x86_64)",
        date=now(),
        seconds=1.5,
        seed=0,
        limit=None,
        sequence_length=64,
        versions={"lm_eval": "0.4.13"},
        tasks={column: TaskResult(column, 10, 10, named, 0, "1.0")},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(json.dumps(RECORD))
    return tmp_path / "one"


def test_a_file_is_read_back_as_it_was_written(run: Path) -> None:
    written = evaluation(acc=0.25, acc_norm=0.5)
    path = record_evaluation(run, written, samples='{"doc_id": 0}\n')
    assert read_evaluations(run / FOLDER) == [written]
    assert path.name.startswith("step_00000020-")
    assert path.with_suffix(".samples.jsonl").read_text() == '{"doc_id": 0}\n'
    with pytest.raises(UserError, match="exists already"):
        record_evaluation(run, written)


def test_the_row_holds_the_newest_of_each_task_and_the_files_all(run: Path) -> None:
    """A later evaluation replaces all columns of its task, also those that it does not have."""
    record_evaluation(run, evaluation(acc=0.25, brier=0.7))
    record_evaluation(run, evaluation("arc_easy", acc=0.3))
    record_evaluation(run, evaluation(acc=0.26))
    content = json.loads((run / "run.json").read_text())
    assert content.pop("evaluations") == {
        "hellaswag.acc": 0.26,
        "hellaswag.acc_stderr": 0.01,
        "arc_easy.acc": 0.3,
        "arc_easy.acc_stderr": 0.01,
    }
    assert content == RECORD
    assert len(read_evaluations(run / FOLDER)) == 3


def test_the_row_is_of_the_end_of_a_complete_run(run: Path) -> None:
    """An older checkpoint, a run that goes on and one that diverged have their files alone."""
    record_evaluation(run, evaluation(step=10, acc=0.25))
    assert json.loads((run / "run.json").read_text()) == RECORD
    assert evaluated_columns(run, 10) == {"hellaswag.acc": 0.25, "hellaswag.acc_stderr": 0.01}
    (run / "run.json").write_text(json.dumps(RECORD | {"status": "diverged"}))
    record_evaluation(run, evaluation(acc=0.25))
    assert "evaluations" not in json.loads((run / "run.json").read_text())
    (run / "run.json").unlink()
    record_evaluation(run, evaluation(acc=0.25))
    assert len(read_evaluations(run / FOLDER)) == 3


def test_part_of_a_task_and_other_shots_are_other_columns() -> None:
    assert column_of("hellaswag") == "hellaswag"
    assert column_of("hellaswag", shots=10) == "hellaswag_10shot"
    assert column_of("bpb.book", samples=3, stride=8) == "bpb.book_stride8_first3"
    assert column_of("hellaswag", 10, samples=100) == "hellaswag_10shot_first100"


def test_what_is_no_number_has_no_column(run: Path) -> None:
    record_evaluation(run, evaluation(perplexity=math.inf, acc=0.5, f1=math.nan))
    assert set(evaluated_columns(run, 20)) == {"hellaswag.acc", "hellaswag.acc_stderr"}


def test_a_damaged_file_is_named_and_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_evaluation(run, evaluation(acc=0.25))
    torn = run / FOLDER / "step_00000020-torn.json"
    torn.write_text('{"suite": "lm')
    with caplog.at_level(logging.WARNING):
        assert evaluated_columns(run, 20)["hellaswag.acc"] == 0.25
    assert f"{torn} is damaged" in caplog.text


def test_a_folder_that_cannot_be_written(run: Path) -> None:
    (run / FOLDER).write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        record_evaluation(run, evaluation(acc=0.25))


def test_the_table_of_runs_has_them_as_columns(run: Path) -> None:
    """Read without torch, as numbers, from run folders and from the table written of them."""
    record_evaluation(run, evaluation(acc_norm=0.5))
    (row,) = read_runs([str(run)])
    assert row.number("hellaswag.acc_norm") == 0.5
    assert "evaluations" not in row.record
    assert export_rows([row])[0]["hellaswag.acc_norm_stderr"] == 0.01
