"""What a model was found to do on tasks: a file an evaluation, which is never replaced, and the
columns that a run's row has of the newest ones.

A column is ``TASK.METRIC``: ``hellaswag.acc_norm``, and ``hellaswag.acc_norm_stderr`` beside it;
where the task's name begins with the metric's (``bpb.arc_easy``, ``core``), the task's alone. A
task that was asked in another way than its own is another column (`column_of`): what was measured
on a part of its documents never stands for the whole. Files are in a run's ``evaluations/`` (an
export's stand beside its folder), named by step and time; docs/eval.md has their fields.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from questtrain.errors import UserError
from questtrain.store.files import locked, write_json, write_text
from questtrain.store.json_file import Count, DamagedJson, NotNegative, read_json
from questtrain.store.run_record import FILE, RunRecord, read_run_record

log = logging.getLogger(__name__)

FOLDER = "evaluations"
STDERR = "_stderr"
REMEDY = "Move it away; the evaluation can be run again."


@dataclass(frozen=True)
class Metric:
    """``value`` is None where it is no finite number; ``stderr`` where the suite gives none."""

    value: float | None
    stderr: float | None = None
    higher_is_better: bool | None = None

    @classmethod
    def of(
        cls, value: float, stderr: float | None = None, higher_is_better: bool | None = None
    ) -> Metric:
        """Of any numbers: JSON has neither NaN nor infinities."""
        return cls(_finite(value), _finite(stderr), higher_is_better)


@dataclass(frozen=True)
class TaskResult:
    """``column`` is what its columns are called; ``samples`` documents were asked of the ``total``
    that the task has; ``num_fewshot`` examples stood before each, None where that has no meaning.
    ``version`` is the task's own. Metrics by name, the task's main one first. Of texts: the
    ``files``, absolute paths, and the tokens that windows over long ones moved by (``stride``);
    None elsewhere."""

    column: str
    samples: Count
    total: Count
    metrics: dict[str, Metric]
    num_fewshot: Count | None = None
    version: str | None = None
    files: list[str] | None = None
    stride: Count | None = None


@dataclass(frozen=True)
class Evaluation:
    """``suite`` is who asked (``lm-eval``, …), ``source`` the folder's name, ``packed`` whether
    weights were codes; ``date`` is UTC in ISO 8601, with microseconds; ``limit`` and ``seed`` are
    the settings, None where they were not given; ``versions`` are of the packages."""

    suite: str
    source: str
    step: Count
    bits: str
    packed: bool
    device: str
    date: str
    seconds: NotNegative
    seed: Count | None
    limit: NotNegative | None
    sequence_length: Count
    versions: dict[str, str]
    tasks: dict[str, TaskResult] = field(default_factory=dict)


def now() -> str:
    """The date of an evaluation."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def column_of(
    task: str, shots: int | None = None, samples: int | None = None, stride: int | None = None
) -> str:
    """``hellaswag``; ``hellaswag_10shot`` where ``shots`` are not the task's own;
    ``hellaswag_first100`` where only so many ``samples`` of it were asked; ``bpb.book_stride8``
    where windows moved by a ``stride`` that is not the default."""
    ways = ((shots, "_{}shot"), (stride, "_stride{}"), (samples, "_first{}"))
    return task + "".join(way.format(number) for number, way in ways if number is not None)


def write_evaluation(folder: Path, evaluation: Evaluation, samples: str | None = None) -> Path:
    """Add a file to a folder of evaluations, which is made; with ``samples``, text in JSON lines,
    another beside it. UserError where it cannot be written."""
    moment = datetime.fromisoformat(evaluation.date).strftime("%Y%m%dT%H%M%S.%f")
    path = folder / f"step_{evaluation.step:08}-{moment}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if path.exists():
                raise UserError(f"{path} exists already: another evaluation has this date.")
            if samples is not None:
                write_text(path.with_suffix(".samples.jsonl"), samples)
            write_json(path, asdict(evaluation))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return path


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Those of a folder of evaluations, oldest first; a damaged one is named in the log, and left
    out."""
    found = []
    for path in sorted(folder.glob("step_*.json")):
        try:
            found.append(read_json(path, Evaluation, REMEDY))
        except DamagedJson as error:
            log.warning("%s", error)
    return sorted(found, key=lambda evaluation: evaluation.date)


def columns_of(evaluations: Iterable[Evaluation], step: int) -> dict[str, float]:
    """The columns that evaluations, oldest first, of one step make: the newest of each task."""
    newest: dict[str, dict[str, Metric]] = {}
    for evaluation in evaluations:
        if evaluation.step == step:
            newest |= {task.column: task.metrics for task in evaluation.tasks.values()}
    columns: dict[str, float] = {}
    for column, metrics in newest.items():
        for name, metric in metrics.items():
            if metric.value is None:
                continue
            own = column if column.partition(".")[0] == name else f"{column}.{name}"
            columns[own] = metric.value
            if metric.stderr is not None:
                columns[own + STDERR] = metric.stderr
    return columns


def evaluated_columns(run: Path, step: int) -> dict[str, float]:
    """The columns of what lies in a run's folder of evaluations: of its last ``step``, they are
    what its record holds."""
    return columns_of(read_evaluations(run / FOLDER), step)


def record_evaluation(run: Path, evaluation: Evaluation, samples: str | None = None) -> Path:
    """Add a file to a run's evaluations, and its columns to ``run.json`` where the run has ended
    with that step. Returns the file. UserError where it cannot be written."""
    path = write_evaluation(run / FOLDER, evaluation, samples)
    with locked(run / FOLDER / ".lock"):
        if is_of_the_end(read_run_record(run), evaluation.step):
            content = json.loads((run / FILE).read_bytes())
            content["evaluations"] = evaluated_columns(run, evaluation.step)
            write_json(run / FILE, content)
    return path


def is_of_the_end(record: RunRecord | None, step: int) -> bool:
    """Whether a run is complete and ``step`` its last: what its row is about."""
    return record is not None and record.status == "completed" and record.steps == step


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)
