"""``questtrain plot``: a figure of the paper from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from questtrain.cli.arguments import parse_arguments
from questtrain.errors import UserError, suggestion
from questtrain.scaling.figures import FIGURES, figure_name
from questtrain.scaling.figures.style import file_format, save
from questtrain.scaling.run_folders import find_runs

HELP = f"""usage: questtrain plot NAME RUNS… [-o FILE] [--json]

Draws a figure of the paper. RUNS are run folders, or folders of runs (a sweep). A run that lacks
what the figure needs is named, with the command that makes it, and left out.

figures
{chr(10).join(f"  {n:<14}{f.alias:<7}{f.text}" for n, f in FIGURES.items())}

options
  -o FILE   where to; the suffix chooses the format: png, pdf, svg   [NAME.png]
  --json    print the numbers and texts of the figure instead of drawing it

examples
  questtrain plot alignment runs/30M-w8a8-quest runs/30M-w8a8-ste
  questtrain plot fig8 runs/masks -o figures/mask.pdf
"""


def main(words: Sequence[str]) -> int:
    output, rest = _take_output(words)
    arguments = parse_arguments(rest)
    if arguments.help or not words:
        print(HELP, end="")
        return 0
    for word in arguments.overrides:
        if word.startswith("-"):
            close = suggestion(word.partition("=")[0], ("--output", "--json", "--help"))
            raise UserError(f"unknown option {word!r}: choose from -o FILE, --json, --help.{close}")
    if not arguments.overrides:
        raise UserError(f"name a figure: {', '.join(FIGURES)}.")
    name = figure_name(arguments.overrides[0])
    if arguments.json and output is not None:
        raise UserError("--json prints and draws nothing: leave out -o.")
    path = Path(output or f"{name}.png").expanduser()
    file_format(path)
    data = FIGURES[name].data(find_runs(arguments.overrides[1:]))
    if arguments.json:
        print(json.dumps({"figure": name} | asdict(data), indent=2))
        return 0
    save(FIGURES[name].draw(data), path)
    print(path)
    return 0


def _take_output(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file of ``-o FILE`` (or ``--output=FILE``), and the other words."""
    output, others = None, []
    rest = iter(words)
    for word in rest:
        option, separator, value = word.partition("=")
        if option not in ("-o", "--output"):
            others.append(word)
            continue
        output = value if separator else next(rest, "")
        if not output:
            raise UserError(f"{option} needs a file.")
    return output, others
