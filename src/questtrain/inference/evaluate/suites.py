"""From the words of an evaluation to tasks whose data is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from questtrain.config.eval_tasks import EvalTask
from questtrain.data.text_rows import TextField
from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import ReadyTask
from questtrain.inference.evaluate.bits_per_byte import read_texts
from questtrain.inference.evaluate.core import CoreSuite
from questtrain.inference.evaluate.tasks import load_tasks


@dataclass(frozen=True)
class Places:
    """Where data is: ``include_path`` and ``datasets`` as in `load_tasks`, ``text_field`` holds the
    text in rows of files."""

    include_path: Path | None
    datasets: Path | None
    text_field: TextField
    prefix: str = ""
    """Of the settings that name these folders."""

    @classmethod
    def of(
        cls,
        include_path: str | None,
        datasets: str | None,
        text_field: TextField,
        prefix: str = "",
    ) -> Places:
        """Of folders as settings name them."""
        return cls(folder_of(include_path), folder_of(datasets), text_field, prefix)


def folder_of(setting: str | None) -> Path | None:
    """The folder that a setting names."""
    return None if setting is None else Path(setting).expanduser().resolve()


def read_suites(tasks: Sequence[EvalTask], places: Places) -> list[ReadyTask]:
    """The tasks with their data, those of lm-evaluation-harness together; UserError where data is
    missing or wrong, or two tasks have one name."""
    ready: list[ReadyTask] = []
    names: dict[str, str] = {}
    for task in tasks:
        if task.suite == "core":
            ready.append(CoreSuite.read(task.name))
            _claim("core", task, names)
        elif task.suite == "bpb":
            texts = read_texts(task.name, places.text_field)
            ready.append(texts)
            _claim(f"bpb.{texts.name}", task, names)
        elif task.suite == "answers":
            _claim(f"bpb.{task.name}", task, names)
    for suite in ("lm-eval", "answers"):
        if own := [task.name for task in tasks if task.suite == suite]:
            ready.append(_harness_task(suite, own, places))
    return ready


def _claim(name: str, task: EvalTask, names: dict[str, str]) -> None:
    if name in names:
        raise UserError(
            f"{names[name]} and {task.word} are both called {name}: evaluate one of them alone"
            " after renaming its file."
        )
    names[name] = task.word


def _harness_task(suite: str, names: Sequence[str], places: Places) -> ReadyTask:
    """Loaded before the harness is imported, which takes seconds, for names that are wrong."""
    loaded = load_tasks(names, places.include_path, places.datasets, places.prefix)
    from questtrain.inference.evaluate.harness_tasks import HarnessAnswers, HarnessTasks

    return HarnessTasks(loaded) if suite == "lm-eval" else HarnessAnswers(loaded)
