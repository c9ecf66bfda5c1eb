"""From the words of an evaluation to tasks whose data is read, and to their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from questtrain.config.eval_tasks import EvalTask
from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Asking
from questtrain.inference.evaluate.bits_per_byte import read_texts
from questtrain.inference.evaluate.core import CoreSuite
from questtrain.store.evaluations import TaskResult


class ReadyTask(Protocol):
    """One or several tasks with their data at hand."""

    def evaluate(self, asking: Asking) -> dict[str, TaskResult]:
        """Results by the task's name."""


def read_suites(tasks: Sequence[EvalTask], text_field: str) -> list[ReadyTask]:
    """The tasks of our own suites; UserError where their data is missing or wrong, or two of them
    have one name."""
    ready: list[ReadyTask] = []
    names: dict[str, str] = {}
    for task in tasks:
        if task.suite == "core":
            ready.append(CoreSuite.read(task.name))
            name = "core"
        elif task.suite == "bpb":
            texts = read_texts(task.name, text_field)
            ready.append(texts)
            name = f"bpb.{texts.name}"
        else:
            continue
        if name in names:
            raise UserError(
                f"{names[name]} and {task.word} are both called {name}: evaluate them one by one,"
                " or rename a file."
            )
        names[name] = task.word
    return ready
