"""Faults of a task's YAML that the harness tells in Python's words: told in those of the file."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from questtrain.errors import UserError
from questtrain.inference.evaluate.tasks import load_tasks
from tests.inference.evaluate.conftest import ENDINGS

COLUMNS = r"There are context, endings, label\."


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"validation_split": "validatoin"},
            r"validation_split: its data has no split 'validatoin'\. There are validation\."
            " Did you mean 'validation'",
        ),
        ({"test_split": "nosplit"}, r"test_split: its data has no split 'nosplit'\. There are val"),
        ({"fewshot_split": "x", "num_fewshot": 1}, "fewshot_split: its data has no split 'x'"),
        (
            {"doc_to_txt": "x"},
            r"'doc_to_txt' is no key of a task\. There are task, .*Did you mean 'doc_to_text'",
        ),
        (
            {"doc_to_text": "{{contxt}}"},
            rf"doc_to_text: a document has no column 'contxt'\. {COLUMNS} Did you mean 'context'",
        ),
        ({"doc_to_choice": "{{nosuch}}"}, rf"doc_to_choice: .* 'nosuch'\. {COLUMNS}"),
        (
            {"metric_list": [{"metric": "acc_nrom"}]},
            r"metric_list: there is no metric 'acc_nrom'\. There are acc, .*mean 'acc_norm'",
        ),
        (
            {"metric_list": [{"metric": "own"}], "process_results": "{{label}}"},
            "metric_list: the metric 'own' needs an `aggregation` beside it, as `mean`",
        ),
        ({"output_type": "choices"}, "ValueError: Got invalid output_type"),
    ],
)
def test_the_key_at_fault_and_what_there_is(
    task_folder: Path,
    tmp_path: Path,
    changed: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)  # it would look for metrics on the hub
    shutil.copy(task_folder / "endings.jsonl", tmp_path)
    (tmp_path / "endings.yaml").write_text(yaml.safe_dump(ENDINGS | changed))
    with pytest.raises(UserError, match=rf"the task endings cannot be loaded: .*{message}") as told:
        load_tasks(["endings"], tmp_path, tmp_path)
    assert "\n" not in str(told.value)
