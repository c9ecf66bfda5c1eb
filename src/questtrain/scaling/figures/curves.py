"""Figure 11: training loss over tokens, a line a run; the whole, and the end enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.numbers import count_text
from questtrain.scaling.precision import sorted_labels
from questtrain.scaling.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("quest", "lsq", "pact", "none")
WINDOW = 100
"""The running mean covers one part in so many of the longest run's steps."""
ZOOM_STEPS, ZOOM_SHARE = 1000, 0.1
"""The second panel starts at this step, or in short runs after this share of the steps."""
FAR = 1.1
"""A run that ends this many times above the lowest end is not in the second panel."""
MOST_POINTS = 600


@dataclass(frozen=True)
class Line:
    """The running mean of one run's training loss, in nats; ``zoomed`` if panel b shows it."""

    label: str
    run: str
    method: str
    precision: str
    steps: list[int]
    tokens: list[float]
    loss: list[float]
    zoomed: bool


@dataclass(frozen=True)
class CurvesData:
    """``zoom_step``: panel b shows the steps after it."""

    title: str
    ylabel: str
    zoom_step: int
    lines: list[Line]
    missing: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Training:
    run: Run
    steps: NDArray[np.int64]
    tokens: NDArray[np.float64]
    loss: NDArray[np.float64]


def data(paths: Paths) -> CurvesData:
    """Runs of one size and data set, diverged and unfinished ones included: their curves say so."""
    trained = _trained(paths)
    last = max(int(one.steps[-1]) for one in trained)
    window, zoom_step = max(1, last // WINDOW), int(min(ZOOM_STEPS, ZOOM_SHARE * last))
    smooth = [_running_mean(one.steps, one.loss, window) for one in trained]
    lowest = min(float(loss[-1]) for loss in smooth)
    heads = [selection.head(one.run) for one in trained]
    lines = [
        _line(label, one, loss, float(loss[-1]) <= FAR * lowest and int(one.steps[-1]) > zoom_step)
        for label, one, loss in zip(style.run_labels(heads), trained, smooth, strict=True)
    ]
    methods = {one.method for one in heads}
    missing = [
        "BF16" if m == "none" else style.method_label(m, m == "quest")
        for m in METHODS
        if m not in methods
    ]
    far = [line.label for line in lines if not line.zoomed]
    notes = [f"Running mean over {window:,} steps."] if window > 1 else []
    if far:
        notes.append(f"Not in (b), because they end far above or too early: {', '.join(far)}.")
    runs = [one.run for one in trained]
    tokens = count_text(max(float(one.tokens[-1]) for one in trained))
    return CurvesData(
        title=f"Training loss, {heads[0].model}, {tokens} tokens",
        ylabel=selection.loss_label(runs, "training loss (nats/token)"),
        zoom_step=zoom_step,
        lines=lines,
        missing=missing,
        notes=notes,
    )


def draw(data: CurvesData) -> Figure:
    """(a) everything, (b) what comes after the first steps, without runs that end far above."""
    figure = style.panels_figure(data.title, (9, 4))
    whole, zoom = figure.subplots(1, 2)
    unit, name = _unit(max(line.tokens[-1] for line in data.lines))
    for line, look in zip(data.lines, _looks(data.lines), strict=True):
        _draw_line(whole, line, look, unit, 0)
        if line.zoomed:
            _draw_line(zoom, line, look, unit, data.zoom_step)
    whole.set_ylabel(data.ylabel)
    whole.set_title("(a)", loc="left", fontsize="medium")
    zoom.set_title(f"(b) after step {data.zoom_step:,}", loc="left", fontsize="medium")
    for axes in (whole, zoom):
        axes.set_xlabel(f"training tokens ({name})")
        style.open_frame(axes)
    style.panel_legend(whole)
    style.add_notes(figure, data.notes)
    return figure


def _trained(paths: Paths) -> list[_Training]:
    """The runs of one size with training rows, by method, then bits."""
    given = selection.all_runs(paths)
    found = [one for run in given if (one := _training(run)) is not None]
    if not found:
        raise selection.nothing_to_draw("curves", "run folders with training steps", "fig11_curves")
    if len(found) < len(given):
        selection.log.warning(
            "left out of curves: %d without training steps", len(given) - len(found)
        )
    runs = selection.richest(
        [one.run for one in found],
        "curves",
        setting=lambda run: (run.number("non_embedding_params"), run.text("dataset")),
        content=lambda run: (run.method, run.precision),
    )
    order = sorted_labels(run.precision or "" for run in runs)
    kept = [one for one in found if one.run in runs]
    return sorted(kept, key=lambda one: (_rank(one.run), order.index(one.run.precision or "")))


def _training(run: Run) -> _Training | None:
    """Finite training losses by step; None for a run without two of them."""
    rows = [row for row in run.metrics() if _is_training(row)]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: int(row["step"]))
    tokens = [float(row.get("tokens") or row["step"]) for row in rows]
    return _Training(
        run,
        np.array([row["step"] for row in rows]),
        np.array(tokens),
        np.array([row["train_loss"] for row in rows], dtype=np.float64),
    )


def _is_training(row: dict[str, Any]) -> bool:
    loss, step = row.get("train_loss"), row.get("step")
    return isinstance(step, int) and isinstance(loss, float | int) and bool(np.isfinite(loss))


def _rank(run: Run) -> int:
    method = selection.head(run).method
    return METHODS.index(method) if method in METHODS else len(METHODS)


def _running_mean(
    steps: NDArray[np.int64], loss: NDArray[np.float64], window: int
) -> NDArray[np.float64]:
    """Over the rows at most half a window of steps away."""
    total = np.concatenate([[0.0], np.cumsum(loss)])
    first = np.searchsorted(steps, steps - window / 2, side="left")
    end = np.searchsorted(steps, steps + window / 2, side="right")
    mean: NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return mean


def _line(label: str, one: _Training, loss: NDArray[np.float64], zoomed: bool) -> Line:
    """Thinned evenly, the last row always kept."""
    stride = -(-len(loss) // MOST_POINTS)
    kept = np.arange(len(loss) - 1, -1, -stride)[::-1]
    run = selection.head(one.run)
    return Line(
        label=label,
        run=run.folder,
        method=run.method,
        precision=one.run.precision or "",
        steps=one.steps[kept].tolist(),
        tokens=one.tokens[kept].tolist(),
        loss=loss[kept].tolist(),
        zoomed=zoomed,
    )


def _looks(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """By method where each has one line, by precision where each has one, else by place."""
    methods, precisions = {one.method for one in lines}, {one.precision for one in lines}
    if len(methods) == len(lines):
        return [style.method_style(one.method) for one in lines]
    if len(precisions) == len(lines):
        return [style.precision_style(one.precision) for one in lines]
    return [style.line_style(index) for index in range(len(lines))]


def _draw_line(axes: Axes, line: Line, look: dict[str, Any], unit: float, after: int) -> None:
    kept = [place for place, step in enumerate(line.steps) if step > after]
    every = max(1, len(kept) // 8)
    axes.plot(
        [line.tokens[place] / unit for place in kept],
        [line.loss[place] for place in kept],
        label=line.label,
        **look | {"markevery": (every // 2, every), "linewidth": 1.2},
    )


def _unit(tokens: float) -> tuple[float, str]:
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if tokens >= unit:
            return unit, name
    return 1.0, "tokens"
