"""``questtrain report``: runs, their law and their figures as one HTML page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from questtrain.cli.arguments import parse_arguments, refuse_options, take_option

log = logging.getLogger(__name__)

HELP = """usage: questtrain report RUNS… [-o FILE] [--title TEXT]

Writes one HTML page that opens from disk without network: the fitted law with its intervals, an
interactive chart of it, the best model for a budget, loss curves, the table of runs, the figures of
the paper that these runs determine. RUNS are run folders, folders of runs (a sweep), or tables
(.csv, .jsonl). Unfinished and damaged runs are on the page, with what is wrong; without enough runs
for a law the page says so.

options
  -o FILE        where to; the name ends in .html   [report.html]
  --title TEXT   the page's title   [the sweep's title, or the folder's name]

examples
  questtrain report runs/scaling
  questtrain report runs.csv -o page.html --title "My grid"
"""


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain report --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Write the page."""
    title, rest = take_option(words, "--title")
    output, rest = take_option(rest, "-o", "--output", what="a file")
    arguments = parse_arguments(rest)
    refuse_options(arguments.overrides, "-o FILE", "--title TEXT", "--help")
    from questtrain.scaling.report import write_report

    path = Path(output or "report.html").expanduser()
    write_report(path, arguments.overrides, title, words)
    log.info("%.1f MB, complete in itself: open it in a browser", path.stat().st_size / 1e6)
    print(path)
    return 0
