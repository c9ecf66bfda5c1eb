"""``questtrain report``: runs, their law and their figures as one HTML page that needs no network.

`content` reads and fits, a module each makes a section, `page` puts them into the template of
``assets/``. The page's own script draws with plotly, which is part of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from questtrain.errors import UserError
from questtrain.scaling.report.content import gather
from questtrain.scaling.report.drawings import draw_all
from questtrain.scaling.report.page import page
from questtrain.store.files import output_for, write_text

SUFFIXES = (".html", ".htm")


def write_report(
    path: Path, runs: Sequence[str], title: str | None = None, words: Sequence[str] = ()
) -> None:
    """Write the page of the runs that ``runs`` name, its folder included; whole or not at all.

    ``words`` are the command line that the page shows. UserError: no such runs, a table that is
    wrong, a file that cannot be written or is not named as a page.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"-o {path}: end the file's name in .html.")
    document = page(gather(runs, title, words), *draw_all(runs))
    with output_for(path):
        write_text(path, document)
