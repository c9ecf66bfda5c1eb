"""The table of runs: every one, damaged and unfinished ones with their reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from questtrain.scaling.law import Law
from questtrain.scaling.numbers import count_text
from questtrain.scaling.report.content import Content
from questtrain.scaling.report.head import status_class
from questtrain.scaling.report.looks import Look, swatch
from questtrain.scaling.report.markup import MINUS, escape, table, tag
from questtrain.scaling.runs import Run


@dataclass(frozen=True)
class Column:
    """A column of numbers: its head, the column of the record, and how a number is written."""

    head: str
    key: str
    text: Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:+.2f}%".replace("-", MINUS)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60:02} min"


BEFORE = (
    Column("N", "non_embedding_params", count_text),
    Column("D", "tokens", count_text),
    Column("D/N", "tokens_per_param", _plain),
    Column("validation loss", "val_loss", _loss),
)
AFTER = (
    Column("training loss", "train_loss", _loss),
    Column("learning rate", "lr", _plain),
    Column("seed", "seed", "{:g}".format),
    Column("tokens/s", "tokens_per_second", count_text),
    Column("time", "wall_seconds", _hours),
)
RESIDUALS = ("law", "residual")


def section(content: Content, looks: Mapping[str, Look]) -> str:
    """Filters, then the table; columns that no run has are left out."""
    before, after = (
        [c for c in columns if any(_number(run, c.key) is not None for run in content.runs)]
        for columns in (BEFORE, AFTER)
    )
    residuals = [] if content.law is None else list(RESIDUALS)
    texts = [_sorter(name) for name in ("run", "status", "precision")]
    numbers = [*(c.head for c in before), *residuals, *(c.head for c in after)]
    head = [*texts, *(_sorter(name, "number") for name in numbers)]
    rows = [_row(run, before, after, content.law, looks) for run in content.runs]
    labels = {run.precision for run in content.runs}
    precisions = [look.text for look in looks.values() if look.label in labels]
    return _filters(content, precisions) + tag("div", table(head, rows, "Runs"), id="run-table")


def _filters(content: Content, precisions: Sequence[str]) -> str:
    return tag(
        "div",
        tag(
            "label",
            "Find",
            '<input type="search" id="run-filter" placeholder="name, model, reason …">',
        ),
        choice("run-status", "Status", sorted({run.status for run in content.runs})),
        choice("run-precision", "Precision", precisions),
        tag("output", f"{len(content.runs)} runs", id="run-count", aria_live="polite"),
        class_="controls",
    )


def choice(identity: str, name: str, values: Sequence[str]) -> str:
    """A labelled drop-down list, whose first entry stands for all."""
    options = [tag("option", "all", value=""), *(tag("option", escape(v), value=v) for v in values)]
    return tag("label", name, tag("select", *options, id=identity))


def _sorter(name: str, kind: str | None = None) -> str:
    button = tag("button", escape(name), type="button")
    return tag("th", button, scope="col", aria_sort="none", class_=kind)


def _row(
    run: Run,
    before: Sequence[Column],
    after: Sequence[Column],
    law: Law | None,
    looks: Mapping[str, Look],
) -> str:
    look = looks.get(run.precision or "")
    precision = "–" if look is None else swatch(look) + escape(look.text)
    name = escape(run.name)
    if run.problem:
        name += tag("small", escape(run.problem))
    order = list(looks).index(look.label) if look else len(looks)
    return tag(
        "tr",
        tag("th", name, scope="row", data_value=run.name),
        tag("td", tag("span", escape(run.status), class_=f"badge {status_class(run.status)}")),
        tag("td", precision, data_value=order, class_="precision"),
        *(_cell(_number(run, c.key), c.text) for c in before),
        *(_law_cells(run, law) if law else ()),
        *(_cell(_number(run, c.key), c.text) for c in after),
        data_status=run.status,
        data_precision="" if look is None else look.text,
    )


def _number(run: Run, key: str) -> float | None:
    """A number of the record; tokens per parameter from the other two where it is not given."""
    value = run.number(key)
    if value is None and key == "tokens_per_param":
        params, tokens = run.number("non_embedding_params"), run.number("tokens")
        return tokens / params if params and tokens else None
    return value


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    if value is None or not math.isfinite(value):
        return tag("td", "–", class_="number", data_value="")
    return tag("td", text(value), class_="number", data_value=value)


def _law_cells(run: Run, law: Law) -> list[str]:
    """What the law predicts for a finished run, and ln(loss / prediction) in percent."""
    params, tokens = run.number("non_embedding_params"), run.number("tokens")
    if run.val_loss is None or not params or not tokens or run.precision not in law.precisions:
        return [_cell(None, _loss)] * 2
    predicted = float(law.loss(params, tokens, run.precision))
    residual = 100 * math.log(run.val_loss / predicted)
    return [_cell(predicted, _loss), _cell(residual, _percent)]
