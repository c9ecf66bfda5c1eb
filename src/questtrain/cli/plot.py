"""``questtrain plot``: a figure of the paper from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from questtrain.errors import UserError, suggestion
from questtrain.scaling.diagnostics import find_runs
from questtrain.scaling.figures import FIGURES, figure_name
from questtrain.scaling.figures.style import file_format, save

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


@dataclass
class PlotArguments:
    """The words of the command, taken apart."""

    words: list[str] = field(default_factory=list)
    output: str | None = None
    json: bool = False
    help: bool = False


def main(words: Sequence[str]) -> int:
    arguments = _parse(words)
    if arguments.help or not words:
        print(HELP, end="")
        return 0
    if not arguments.words:
        raise UserError(f"name a figure: {', '.join(FIGURES)}.")
    name = figure_name(arguments.words[0])
    if arguments.json and arguments.output is not None:
        raise UserError("--json prints and draws nothing: leave out -o.")
    output = Path(arguments.output or f"{name}.png").expanduser()
    file_format(output)
    data = FIGURES[name].data(find_runs(arguments.words[1:]))
    if arguments.json:
        print(json.dumps({"figure": name} | asdict(data), indent=2))
        return 0
    save(FIGURES[name].draw(data), output)
    print(output)
    return 0


def _parse(words: Sequence[str]) -> PlotArguments:
    """Options may stand anywhere among the words; UserError for an unknown one."""
    arguments = PlotArguments()
    rest = iter(words)
    for word in rest:
        option, separator, value = word.partition("=")
        if word in ("-h", "--help"):
            arguments.help = True
        elif word == "--json":
            arguments.json = True
        elif option in ("-o", "--output"):
            arguments.output = value if separator else next(rest, "")
            if not arguments.output:
                raise UserError(f"{option} needs a file.")
        elif word.startswith("-"):
            close = suggestion(option, ("--output", "--json", "--help"))
            raise UserError(f"unknown option {word!r}: choose from -o FILE, --json, --help.{close}")
        else:
            arguments.words.append(word)
    return arguments
