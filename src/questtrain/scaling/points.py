"""What the law is fitted to: one point a finished run, and what to say about the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from questtrain.errors import UserError
from questtrain.scaling.metric import VAL_LOSS, Metric, metric_of
from questtrain.scaling.precision import label_text
from questtrain.scaling.runs import Run

SAME_LOSS = 1e-6
"""Losses of one point that differ by less (relative) are one run given twice."""

MANY_EPOCHS = 4
"""Passes over the data up to which repeated tokens are worth about as much as new ones
(Muennighoff et al., "Scaling data-constrained language models", 2023)."""

QUANTIZATION: dict[str, str | None] = {
    "trust_scale": None,
    "trust_error": None,
    "lr_scale": None,
    "scale_weight_decay": None,
    "grid": None,
    "scale_dtype": "float32",
    "group_size": "rows",
}
"""Columns of how a precision was trained, and what null says, where it is not that nobody knows."""


@dataclass(frozen=True)
class Point:
    """N in non-embedding parameters, D in tokens, the precision's label, and the loss, in nats a
    token or whatever the fitted metric is in."""

    params: float
    tokens: float
    precision: str
    loss: float
    name: str


def law_points(runs: Sequence[Run], column: str = VAL_LOSS) -> tuple[list[Point], list[str]]:
    """The points of the completed runs, and remarks for the user: runs left out (not complete,
    started from the weights of others, or without the metric), points that occur with several
    losses (all are kept), data sets that do not compare.

    The loss of a point is the metric in ``column`` (`metric_of`). UserError when there is no point.
    """
    metric = metric_of(column, runs)
    remarks = [left_out(run) for run in runs if run.status != "completed"]
    complete = [run for run in runs if run.status == "completed"]
    remarks += [
        f"left out: {run.name} starts from the weights of {run.text('init_from')}: its tokens are"
        " not all that they have seen"
        for run in complete
        if run.text("init_from")
    ]
    from_start = [run for run in complete if not run.text("init_from")]
    remarks += [
        f"left out: {run.name} has no {column}"
        for run in from_start
        if column != VAL_LOSS and metric.value(run) is None
    ]
    points = [point for run in from_start if (point := _point(run, metric)) is not None]
    if not points:
        none = "a run from the start" if complete else "complete"
        raise UserError("\n".join([f"none of the runs is {none}.", *remarks]))
    kept = _without_copies(points)
    return kept, remarks + _several_losses(kept) + _mixed(runs)


def left_out(run: Run) -> str:
    """What to say of a run that is not complete."""
    problem = f" ({run.problem})" if run.problem else ""
    return f"left out: {run.name} is {run.status}{problem}"


def _point(run: Run, metric: Metric) -> Point | None:
    """None for a run that was not evaluated on the metric."""
    params, tokens = (run.number(key) for key in ("non_embedding_params", "tokens"))
    loss = metric.value(run)
    if loss is None and metric.column != VAL_LOSS:
        return None
    if params is None or tokens is None or loss is None or run.precision is None:
        raise UserError(f"{run.source}: its record lacks parameters, tokens, precision or loss.")
    return Point(params, tokens, run.precision, loss, run.name)


def _without_copies(points: Sequence[Point]) -> list[Point]:
    """The same run, given as a folder and in a table, counts once."""
    kept: dict[tuple[float, float, str, str, int], Point] = {}
    for p in points:
        kept[p.params, p.tokens, p.precision, p.name, round(p.loss / SAME_LOSS)] = p
    return list(kept.values())


def _several_losses(points: Sequence[Point]) -> list[str]:
    places = defaultdict(list)
    for p in points:
        places[p.params, p.tokens, p.precision].append(p)
    return [
        f"{len(same)} runs of one point, all kept ({label_text(precision)},"
        f" {params / 1e6:,.1f}M parameters, {tokens / 1e6:,.1f}M tokens): "
        + ", ".join(f"{p.name} {p.loss:.4f}" for p in same)
        for (params, tokens, precision), same in places.items()
        if len(same) > 1
    ]


def _mixed(runs: Sequence[Run]) -> list[str]:
    """Losses of different data do not compare, and one precision is one way of training."""
    remarks = []
    complete = [run for run in runs if run.status == "completed"]
    for column in ("dataset", "tokenizer", "sequence_length"):
        values = _values(complete, column)
        if len(values) > 1:
            remarks.append(f"{_several(column, values)}: their losses may not compare")
    remarks += _corpora(complete) + _repeated(complete)
    for label in dict.fromkeys(run.precision for run in complete):
        of_label = [run for run in complete if run.precision == label]
        for column in QUANTIZATION:
            values = _values(of_label, column, QUANTIZATION[column])
            if len(values) > 1:
                name = label_text(str(label))
                remarks.append(f"{_several(column, values)}: all of them count as {name}")
    return remarks


def _corpora(runs: Sequence[Run]) -> list[str]:
    """Different data under one name; records of earlier versions do not say which it was."""
    remarks = []
    for dataset in dict.fromkeys(run.text("dataset") for run in runs):
        of_name = [run for run in runs if run.text("dataset") == dataset]
        corpora = _values(of_name, "data_sha256")
        if len(corpora) > 1:
            parts = [
                f"{sum(run.text('data_sha256') == corpus for run in of_name)} of {corpus[:8]}"
                for corpus in corpora
            ]
            remarks.append(
                f"the runs{f' on {dataset}' if dataset else ''} are of {len(corpora)} different "
                f"data sets (data_sha256: {', '.join(parts)}): their losses may not compare"
            )
    return remarks


def _repeated(runs: Sequence[Run]) -> list[str]:
    often = [run for run in runs if (run.number("epochs") or 0) > MANY_EPOCHS]
    if not often:
        return []
    names = ", ".join(run.name for run in often[:5]) + (", …" if len(often) > 5 else "")
    return [
        f"{len(often)} of the runs passed more than {MANY_EPOCHS} times over their data ({names}): "
        "the law counts repeated tokens as new ones"
    ]


def _values(runs: Sequence[Run], column: str, of_null: str | None = None) -> list[str]:
    """What occurs in the column; null counts as ``of_null`` if that is given."""
    found = {run.text(column) or of_null for run in runs}
    return sorted(value for value in found if value is not None)


def _several(column: str, values: Sequence[str]) -> str:
    return f"the runs are of several values of {column} ({', '.join(values)})"
