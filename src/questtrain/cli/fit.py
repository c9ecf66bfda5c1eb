"""``questtrain fit``: the scaling law of runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from questtrain.cli.arguments import (
    own_config,
    parse_arguments,
    refuse_options,
    split_paths,
    take_option,
)
from questtrain.cli.help_page import own_settings
from questtrain.cli.output import plain_table, print_json
from questtrain.scaling.figures import FIGURES
from questtrain.scaling.figures.loss_memory import LAW
from questtrain.scaling.figures.style import file_format, save
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import Estimate, Law, law_record, write_law
from questtrain.scaling.metric import VAL_LOSS
from questtrain.scaling.numbers import count_text
from questtrain.scaling.points import law_points
from questtrain.scaling.precision import label_text, weight_bits
from questtrain.scaling.runs import read_runs
from questtrain.store.files import output_for
from questtrain.sweep.console import console

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

HELP = """usage: questtrain fit RUNS… [key=value …] [--json [FILE]] [-o PICTURE]

Fits L(N, D, P) = A/(N·eff(P))^α + B/D^β + E to the final validation losses of runs, or to another
loss of theirs (metric=bpb.NAME, what `questtrain eval` measured). RUNS are run folders, folders of
runs (a sweep), or tables (.csv, .jsonl) with at least non_embedding_params, tokens, precision and
val_loss. Precision 16 (bits=bf16) is the reference, eff(16) = 1.

{settings}

  --form FORM   the same as form=FORM
  --json FILE   write law.json, which `questtrain plan` reads; without FILE, print it
  -o PICTURE    the picture of the law too: .png, .pdf or .svg (more: questtrain plot)

  questtrain fit runs/scaling --json law.json -o law.pdf
  questtrain fit runs.csv form=free-alpha
  questtrain fit runs/scaling metric=bpb.arc_easy
"""

SHARED = {"A": "A", "alpha": "α", "B": "B", "beta": "β", "E": "E"}


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain fit --help`` prints."""
    return HELP.replace("{settings}", own_settings(FitOptions, "fit"))


def main(words: Sequence[str]) -> int:
    """Fit the law of runs, write what was asked for, and show it."""
    file, words = _take_json_file(words)
    form, words = take_option(words, "--form")
    words = words if form is None else [*words, f"form={form}"]
    picture, words = take_option(words, "-o", "--output", what="a file")
    arguments = parse_arguments(words)
    paths, arguments.overrides = split_paths(arguments.overrides)
    refuse_options(
        arguments.overrides, "--json FILE", "-o PICTURE", "--form FORM", "--cfg job", "--help"
    )
    options = own_config(arguments, "fit", FitOptions)
    if options is None:
        return 0
    if picture is not None:
        file_format(Path(picture))
    points, remarks = law_points(read_runs(paths), options.metric)
    for remark in remarks:
        log.warning("%s", remark)
    law = fit_law(points, options)
    if file is not None:
        _write(law, Path(file).expanduser())
    if picture is not None:
        _draw(paths, picture, options.metric)
    if arguments.json:
        print_json(law_record(law))
    else:
        _print_law(law)
    return 0


def _take_json_file(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """``--json FILE`` (a word that ends in .json) is taken out; a bare ``--json`` stays."""
    rest = list(words)
    for place, word in enumerate(rest):
        if word.startswith("--json="):
            return word.partition("=")[2], rest[:place] + rest[place + 1 :]
        if word == "--json" and place + 1 < len(rest) and rest[place + 1].endswith(".json"):
            return rest[place + 1], rest[:place] + rest[place + 2 :]
    return None, rest


def _write(law: Law, path: Path) -> None:
    with output_for(path):
        write_law(law, path)
    log.info("law: %s", path)


def _draw(paths: Sequence[str], picture: str, metric: str) -> None:
    path = Path(picture).expanduser()
    figure = replace(FIGURES["law"], read=partial(LAW.data, metric=metric))
    save(figure.draw(figure.data(paths)), path)
    log.info("picture: %s", path)


def _print_law(law: Law) -> None:
    out = console()
    interval = "" if law.confidence is None else f"{law.confidence:.0%} interval"
    numbers = plain_table([], ["", "value", interval])
    for key, name in SHARED.items():
        numbers.add_row(name, *_cells(getattr(law, key)))
    for label, estimate in law.alpha_of.items():
        numbers.add_row(f"α({label_text(label)})", *_cells(estimate))
    of = "" if law.metric == VAL_LOSS else f" of {law.metric}"
    out.print(f"L(N, D, P) = A/(N·eff(P))^α + B/D^β + E{of}   [{law.form}]")
    out.print(numbers)
    if law.eff:
        out.print(_eff_table(law, interval))
    left_out = law.leave_one_out
    print(
        f"\n{law.points} points; rms of the log residuals {law.rms_log_residual:.2%}"
        + ("" if left_out is None else f", of points predicted without themselves {left_out:.2%}")
    )
    for warning in law.warnings:
        print(f"warning: {warning}")


def _eff_table(law: Law, interval: str) -> Table:
    at = "" if law.eff_at is None else f" at {count_text(law.eff_at)}"
    table = plain_table(["precision"], [f"eff(P){at}", interval, "eff(P)/P · 16"])
    for label in law.precisions:
        estimate, bits = law.efficiency(label), weight_bits(label)
        ratio = "" if bits is None else f"{estimate.value * 16 / bits:.2f}"
        table.add_row(label_text(label), *_cells(estimate), ratio)
    return table


def _cells(estimate: Estimate) -> tuple[str, str]:
    value, low, high = (
        None if number is None else f"{number:.4g}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return str(value), "" if low is None else f"{low} – {high}"
