"""``questtrain plot``: a figure or table of the paper from runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from questtrain.cli.arguments import parse_arguments, refuse_options, take_option
from questtrain.cli.output import print_json
from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES, check_output, figure_name, write

ALL = "all"

HELP = f"""usage: questtrain plot NAME RUNS… [-o FILE] [--json]
       questtrain plot all RUNS… [-o FOLDER]

Draws a figure of the paper. RUNS are run folders, folders of runs (a sweep), or .csv and .jsonl
tables of runs. What is missing is named, the rest is drawn.

figures
{chr(10).join(f"  {n:<14}{f.alias:<7}{f.text}" for n, f in FIGURES.items())}
  all                  every one that the runs allow, as PNG and PDF, tables as Markdown too

options
  -o FILE   where to; the suffix chooses the format: png, pdf, svg; of tables also md, tex, csv
            [NAME.png; the folder of all: figures]
  --json    print the numbers and texts of the figure instead of drawing it

examples
  questtrain plot law runs/scaling
  questtrain plot table1 runs.csv -o eff.tex
  questtrain plot alignment runs/30M-w8a8-quest runs/30M-w8a8-ste
  questtrain plot fig8 runs/masks -o figures/mask.pdf
  questtrain plot all runs/smoke -o figures
"""


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain plot --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Draw one figure, or all that the runs allow."""
    output, rest = take_option(words, "-o", "--output", what="a file")
    arguments = parse_arguments(rest)
    refuse_options(arguments.overrides, "-o FILE", "--json", "--help")
    if not arguments.overrides:
        raise UserError(f"name a figure: {', '.join(FIGURES)}.")
    if arguments.json and output is not None:
        raise UserError("--json prints and draws nothing: leave out -o.")
    figure, *runs = arguments.overrides
    if figure == ALL:
        if arguments.json:
            raise UserError("--json prints one figure: name it.")
        return _draw_all(runs, Path(output or "figures").expanduser())
    return _draw(figure_name(figure), runs, output, arguments.json)


def _draw(name: str, runs: Sequence[str], output: str | None, as_json: bool) -> int:
    path = Path(output or f"{name}.png").expanduser()
    check_output(name, path)
    data = FIGURES[name].data(runs)
    if as_json:
        print_json({"figure": name} | asdict(data))
        return 0
    write(name, data, path)
    print(path)
    return 0


def _draw_all(runs: Sequence[str], folder: Path) -> int:
    from questtrain.scaling.figures.available import available
    from questtrain.scaling.runs import read_runs

    read_runs(runs)  # what is wrong with the paths is said once
    found = available(runs)
    if not found:
        raise UserError("nothing to draw: these runs allow none of the figures.")
    for name, data in found.items():
        for suffix in ("png", "pdf", *(["md"] if FIGURES[name].table else [])):
            path = folder / f"{name}.{suffix}"
            write(name, data, path)
            print(path)
    return 0
