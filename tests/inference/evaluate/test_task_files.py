"""Task files that are none: one message that names file, line and column, and what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from questtrain.errors import UserError
from questtrain.inference.evaluate import tasks
from questtrain.inference.evaluate.task_files import check_task_file
from questtrain.inference.evaluate.tasks import load_tasks
from tests.inference.evaluate.test_command import only_own

BROKEN = {
    "a list without its end": (
        b"task: quiz\nmetric_list: [acc\n",
        "quiz.yaml, line 3, column 1: no YAML: expected ',' or ']', but got '<stream end>'"
        " (while parsing a flow sequence that begins in line 2, column 14).",
    ),
    "a tab": (b"task: quiz\nmetrics:\n\t- acc\n", "quiz.yaml, line 3, column 1: no YAML: found"),
    "no UTF-8": (
        b"task: a\nname: caf\xe9\n",
        "quiz.yaml, line 2, column 10: no text in UTF-8: inv",
    ),
    "no text": (b"task: a\n  \x00", "quiz.yaml, line 2, column 3: no YAML: special characters"),
    "too deep": (b"[" * 5000, "quiz.yaml: nested too deeply to read."),
    "nothing": (b"", "lines like `task: NAME` are expected, and it holds nothing."),
    "a list": (b"- a\n- b\n", "and it holds a list."),
    "a text": (b"just a text", "and it holds a text."),
    "no name": (b"dataset_path: json\n", "names no task: a line `task: NAME` is expected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_file_and_where(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    (tmp_path / "quiz.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_task_file(tmp_path / "quiz.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["quiz.yaml", "other.yaml"])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        (BROKEN["a list without its end"][0], "line 3, column 1: no YAML: .*expected ',' or"),
        (BROKEN["no UTF-8"][0], "line 2, column 10: no "),
        (b"task: a\nb: !foo 1\n", "line 2, column 4: no YAML: could not determine"),
    ],
)
def test_a_file_that_is_named_or_included(
    name: str, content: bytes, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one at fault is named."""
    monkeypatch.setattr(tasks, "_manager", only_own(tasks._manager))
    (tmp_path / "quiz.yaml").write_bytes(content)
    (tmp_path / "other.yaml").write_text("task: other\ninclude: quiz.yaml\n")
    with pytest.raises(UserError, match=rf"quiz\.yaml, {place}"):
        load_tasks([str(tmp_path / name)])


def test_whatever_may_be_a_task_is_left_to_the_harness(tmp_path: Path) -> None:
    for content in (
        "task: a\ndoc_to_text: !function own.text\n",
        "include: b.yaml\n",
        "group: g\n",
    ):
        (tmp_path / "a.yaml").write_text(content)
        check_task_file(tmp_path / "a.yaml")
