"""Table 2: HellaSwag's accuracy without examples, BF16 beside W4A4, size by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from questtrain.scaling.figures import selection
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.figures.tables import Table
from questtrain.scaling.precision import REFERENCE, label_text
from questtrain.scaling.runs import Run

TASK, SWEEP = "hellaswag", "table2_hellaswag"
METRICS = ("acc", "acc_norm")
"""Choices by the sum of their log-probabilities, and by that sum over their lengths in
characters."""
QUANTIZED = "4"
NONE = "–"


@dataclass(frozen=True)
class Accuracy:
    """In percent: the mean over ``runs`` runs that differ in their seeds, and the standard error
    that the number of questions gives it; None where it is not known."""

    mean: float
    stderr: float | None
    runs: int


@dataclass(frozen=True)
class HellaSwagData:
    """``accuracy[row][metric][precision]``, precisions as in ``precisions``; None where there is no
    run."""

    title: str
    models: list[str]
    precisions: list[str]
    metrics: list[str]
    accuracy: list[list[list[Accuracy | None]]]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> HellaSwagData:
    """The runs of both precisions that were evaluated on all of HellaSwag, a row a size, token
    count and data set."""
    precisions = [REFERENCE, QUANTIZED]
    runs = [
        run
        for run in selection.finished(paths)
        if run.precision in precisions and any(_percent(run, m) is not None for m in METRICS)
    ]
    metrics = [m for m in METRICS if any(_percent(run, m) is not None for run in runs)]
    rows = selection.grouped(runs, selection.budget)
    if not any({run.precision for run in own} == set(precisions) for own in rows.values()):
        needs = (
            f"BF16 and W4A4 at one size and token count with results of {TASK}, which `questtrain"
            f" eval run=… tasks={TASK}` adds to runs that exist"
        )
        raise selection.nothing_to_draw("table2", needs, SWEEP)
    order = sorted(rows.items(), key=lambda item: [number or 0 for number in item[0][:2]])
    return HellaSwagData(
        title="HellaSwag, zero-shot accuracy (%)",
        models=[selection.size_and_tokens(own[0]) for _, own in order],
        precisions=precisions,
        metrics=metrics,
        accuracy=[
            [[_accuracy(own, metric, precision) for precision in precisions] for metric in metrics]
            for _, own in order
        ],
        missing=[
            f"{label_text(precision)} at {selection.size_and_tokens(own[0])}"
            for _, own in order
            for precision in precisions
            if precision not in {run.precision for run in own}
        ],
        notes=_notes(metrics, [own for _, own in order]),
    )


def table(data: HellaSwagData) -> Table:
    """A row a model; for each metric a column a precision, and their difference."""
    labels = [label_text(precision) for precision in data.precisions]
    header, rows = ["model"], [[model] for model in data.models]
    for number, metric in enumerate(data.metrics):
        header += [f"{label} {metric}" for label in labels]
        header.append(f"{labels[1]} - {labels[0]}")
        for row, cells in zip(rows, data.accuracy, strict=True):
            row += [*map(_text, cells[number]), _difference(*cells[number])]
    return Table(data.title, header, rows, [], data.notes)


def _accuracy(runs: Sequence[Run], metric: str, precision: str) -> Accuracy | None:
    own = [run for run in runs if run.precision == precision]
    means = [mean for run in own if (mean := _percent(run, metric)) is not None]
    if not means:
        return None
    errors = [_percent(run, f"{metric}_stderr") for run in own]
    known = [error for error in errors if error is not None]
    stderr = math.hypot(*known) / len(means) if len(known) == len(means) else None
    return Accuracy(math.fsum(means) / len(means), stderr, len(means))


def _percent(run: Run, metric: str) -> float | None:
    number = run.number(f"{TASK}.{metric}")
    return None if number is None else 100 * number


def _text(cell: Accuracy | None) -> str:
    if cell is None:
        return NONE
    return f"{cell.mean:.2f}" + ("" if cell.stderr is None else f" ± {cell.stderr:.2f}")


def _difference(reference: Accuracy | None, quantized: Accuracy | None) -> str:
    """Of the means; its standard error is that of two independent samples, which is too large for
    two models asked the same questions."""
    if reference is None or quantized is None:
        return NONE
    text = f"{quantized.mean - reference.mean:+.2f}"
    if reference.stderr is None or quantized.stderr is None:
        return text
    return f"{text} ± {math.hypot(reference.stderr, quantized.stderr):.2f}"


def _notes(metrics: Sequence[str], rows: Sequence[Sequence[Run]]) -> list[str]:
    notes = ["±: standard error over the questions; of a difference, as of independent samples."]
    if "acc_norm" in metrics:
        notes.append("acc_norm: choices compared by log-probability per character.")
    counts = {
        sum(run.precision == p for run in own) for own in rows for p in (REFERENCE, QUANTIZED)
    }
    if max(counts) > 1:
        notes.append("Means over seeds.")
    return notes
