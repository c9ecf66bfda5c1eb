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
from questtrain.scaling.fit import FitOptions
from questtrain.scaling.law import Law
from questtrain.scaling.points import Point, law_points
from questtrain.scaling.precision import sorted_labels
from questtrain.scaling.runs import Run, read_runs
from questtrain.store.json_file import DamagedJson, read_json


@dataclass(frozen=True)
class Content:
    """``law`` is None where none can be fitted; ``why_no_law`` then says why. ``remarks`` are of
    the points: what was left out, what may not compare."""

    title: str
    date: str
    command: str
    runs: list[Run]
    points: list[Point]
    law: Law | None
    why_no_law: str | None
    remarks: list[str]

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
    return Content(
        title=title or default_title(paths),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=shlex.join(["questtrain", "report", *words]),
        runs=runs,
        points=points,
        law=law,
        why_no_law=why,
        remarks=remarks,
    )


def _fitted(points: Sequence[Point]) -> Law:
    """With intervals, or without where every point is needed to determine the law."""
    try:
        return fit_once(tuple(points), FitOptions())
    except UserError:
        return fit_once(tuple(points), FitOptions(bootstrap=0))


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
