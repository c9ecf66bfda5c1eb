"""What the page is about: the runs, the law fitted to them, and what a page without one says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from questtrain.errors import UserError
from questtrain.scaling.figures.law_runs import fit_once
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import Law
from questtrain.scaling.metric import VAL_LOSS, Metric, is_evaluated, metric_of, valid_columns
from questtrain.scaling.points import Point, law_points
from questtrain.scaling.precision import sorted_labels
from questtrain.scaling.runs import Run, read_runs
from questtrain.store.json_file import DamagedJson, read_json


@dataclass(frozen=True)
class OtherLaw:
    """The law of what an evaluation measured, or ``why`` there is none."""

    metric: Metric
    law: Law | None
    why: str | None = None


@dataclass(frozen=True)
class Content:
    """``law`` is None where none can be fitted; ``why_no_law`` then says why. ``remarks`` are of
    the points: what was left out, what may not compare. ``other_laws`` are of evaluations,
    ``more_columns`` what else can be fitted."""

    title: str
    date: str
    command: str
    runs: list[Run]
    points: list[Point]
    law: Law | None
    why_no_law: str | None
    remarks: list[str]
    other_laws: list[OtherLaw]
    more_columns: list[str]

    @property
    def precisions(self) -> list[str]:
        """Every label that a run or the law knows, in the order of figures."""
        labels = {run.precision for run in self.runs} | {p.precision for p in self.points}
        return sorted_labels(label for label in labels if label is not None)


def gather(paths: Sequence[str], title: str | None, words: Sequence[str]) -> Content:
    """Read the runs and fit the law. ``words`` are those of the command line.

    UserError: paths without runs, or a table that is wrong. A law that cannot be fitted is none.
    """
    runs = read_runs(paths)
    points: list[Point] = []
    remarks: list[str] = []
    law, why = None, None
    try:
        points, remarks = law_points(runs)
        law = _fitted(points)
    except UserError as error:
        why = str(error)
    others = _other_metrics(runs)
    return Content(
        title=title or default_title(paths),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=shlex.join(["questtrain", "report", *words]),
        runs=runs,
        points=points,
        law=law,
        why_no_law=why,
        remarks=remarks,
        other_laws=[_other_law(other, runs) for other in others if is_evaluated(other.column)],
        more_columns=[other.column for other in others if not is_evaluated(other.column)],
    )


def _other_metrics(runs: Sequence[Run]) -> list[Metric]:
    """The columns besides the validation loss that can follow the law."""
    metrics = []
    for column in valid_columns([run for run in runs if run.status == "completed"]):
        with suppress(UserError):
            metrics.append(metric_of(column, runs))
    return [metric for metric in metrics if metric.column != VAL_LOSS]


def _other_law(metric: Metric, runs: Sequence[Run]) -> OtherLaw:
    """As `questtrain fit` finds it."""
    try:
        points, _ = law_points(runs, metric.column)
        return OtherLaw(metric, _fitted(points, metric.column))
    except UserError as error:
        return OtherLaw(metric, None, str(error))


def _fitted(points: Sequence[Point], metric: str = VAL_LOSS) -> Law:
    """With intervals, or without where every point is needed to determine the law."""
    # Figures show the law of the validation loss again, which is kept for them.
    fit = fit_once if metric == VAL_LOSS else fit_law
    try:
        return fit(tuple(points), FitOptions(metric=metric))
    except UserError:
        return fit(tuple(points), FitOptions(bootstrap=0, metric=metric))


def default_title(paths: Sequence[str]) -> str:
    """The title of the sweep in the first folder that has one, else the names of the paths."""
    places = [Path(path).expanduser() for path in paths]
    titles = [title for place in places if (title := _sweep_title(place))]
    if titles:
        return titles[0]
    names = [place.resolve().name for place in places]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _Sweep:
    """What the report reads of a sweep's ``sweep.json``."""

    title: str


def _sweep_title(folder: Path) -> str | None:
    with suppress(FileNotFoundError, DamagedJson):
        title = read_json(folder / "sweep.json", _Sweep).title
        return title if title.strip() else None
    return None
