"""Which runs a figure draws, how it calls them, and what it says of those that are missing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeAlias, TypeVar

from questtrain.errors import UserError
from questtrain.scaling.diagnostics import RunHead
from questtrain.scaling.metric import LABELS, metric_of
from questtrain.scaling.numbers import count_text
from questtrain.scaling.points import left_out
from questtrain.scaling.precision import (
    DEFAULT_METHOD,
    integer_kind,
    label_text,
    method_and_switch,
    split_label,
)
from questtrain.scaling.runs import Run, read_runs

log = logging.getLogger(__name__)

Paths: TypeAlias = Sequence[str | Path]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

DATASETS = {"c4": "C4"}
SEED_NOTE = "Bars: lowest to highest of several seeds, the marker their mean."


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest over ``runs`` runs of one place, which differ in their seeds."""

    mean: float
    low: float
    high: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values), len(values))


def loss_spread(runs: Sequence[Run]) -> Spread:
    """Of the runs' validation losses, in nats."""
    return spread([known(run, "val_loss") for run in runs])


def perplexity_spread(runs: Sequence[Run]) -> Spread:
    """Of the runs' validation perplexities."""
    return spread([math.exp(known(run, "val_loss")) for run in runs])


def seed_notes(spreads: Iterable[Spread]) -> list[str]:
    """What to say of the bars, where there are any."""
    return [SEED_NOTE] if any(one.runs > 1 for one in spreads) else []


def all_runs(paths: Paths) -> list[Run]:
    return read_runs([str(path) for path in paths])


def finished(paths: Paths) -> list[Run]:
    """The completed runs; the others are named in the log."""
    runs = all_runs(paths)
    for run in runs:
        if run.status != "completed":
            log.warning("%s", left_out(run))
    return [run for run in runs if run.status == "completed"]


def nothing_to_draw(figure: str, needs: str, sweep: str) -> UserError:
    return UserError(f"nothing to draw: {figure} needs {needs} (`questtrain sweep {sweep}`).")


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Key → the items that have it, in the order of their first ones."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def richest(
    runs: Sequence[Run],
    figure: str,
    setting: Callable[[Run], Hashable],
    content: Callable[[Run], Hashable],
) -> list[Run]:
    """The runs of the one setting that shows most different contents, trained longest where several
    do, or none of none; the log says how many runs of other settings are left out."""
    if not runs:
        return []

    def worth(group: list[Run]) -> tuple[int, int, float]:
        return len({content(run) for run in group}), len(group), group[0].number("tokens") or 0.0

    best = max(grouped(runs, setting).values(), key=worth)
    if len(best) < len(runs):
        others = [run.name for run in runs if run not in best]
        names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        log.warning(
            "left out of %s, which shows %s alone: %d runs of other sizes or settings (%s)",
            figure,
            size_and_tokens(best[0]) or "one setting",
            len(others),
            names,
        )
    return best


def known(run: Run, column: str) -> float:
    """A number that the caller has found to be there."""
    value = run.number(column)
    assert value is not None, (run.name, column)
    return value


def budget(run: Run) -> tuple[float | None, float | None, str | None]:
    """What runs must have in common to compare: parameters, tokens, data set."""
    return run.number("non_embedding_params"), run.number("tokens"), run.text("dataset")


def method_and_bits(run: Run) -> tuple[str, str]:
    """The `integer_kind` of its precision."""
    return integer_kind(run.precision or "")


def head(run: Run) -> RunHead:
    """The run as the labels of diagnostics know it."""
    named = split_label(run.precision or "")
    own, switch = method_and_switch(named[1]) if named else (DEFAULT_METHOD, None)
    method = run.method or own
    bits = run.text("bits") or (str(named[0]) if named else label_text(run.precision or ""))
    bits += "" if switch is None else f" after {switch}"
    return RunHead(
        name=run.name,
        model=run.model or count_text(run.number("non_embedding_params")),
        bits=bits,
        method=method,
        hadamard=is_rotated(run),
        seed=int(run.number("seed") or 0),
        folder=run.source,
    )


def is_rotated(run: Run) -> bool:
    """Whether the Hadamard transform was on; by the method where no column says."""
    said = run.text("hadamard")
    if said is not None:
        return said.lower() in ("true", "1")
    named = split_label(run.precision or "")
    return (run.method or (method_and_switch(named[1])[0] if named else None)) == DEFAULT_METHOD


def size_and_tokens(run: Run) -> str:
    """``30M, 3B tokens``."""
    size, tokens = run.model or count_text(run.number("non_embedding_params")), run.number("tokens")
    return f"{size}, {count_text(tokens)} tokens" if tokens else size


def loss_label(runs: Sequence[Run], quantity: str = "validation loss (nats/token)") -> str:
    """``C4 validation loss (nats/token)``, without a data set where there are several or none."""
    datasets = {run.text("dataset") for run in runs}
    name = datasets.pop() if len(datasets) == 1 else None
    return f"{DATASETS.get(name, name)} {quantity}" if name else quantity.capitalize()


def metric_label(runs: Sequence[Run], column: str) -> str:
    """`loss_label` of a metric that the law is fitted to; the data set is that of training, and so
    belongs to the losses of training alone."""
    label = metric_of(column, runs).label
    return loss_label(runs, label) if column in LABELS else label
