"""Every figure that the given runs allow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from questtrain.errors import UserError
from questtrain.scaling import diagnostics
from questtrain.scaling.figures import FIGURES, selection
from questtrain.scaling.figures.selection import Paths

log = logging.getLogger(__name__)


def available(paths: Paths) -> dict[str, Any]:
    """Name → data of the figures that can be drawn, in the paper's order.

    The log says of each other figure what it needs, and of those drawn what is missing, each once;
    nothing is raised.
    """
    found: dict[str, Any] = {}
    said: set[str] = set()
    for name, figure in FIGURES.items():
        try:
            with _held() as records:
                found[name] = figure.data(paths)
        except UserError as error:
            log.info("not drawn: %s (%s): %s", name, figure.alias, error)
            continue
        for record in records:
            if record.getMessage() not in said:
                said.add(record.getMessage())
                log.handle(record)
    return found


@contextmanager
def _held() -> Iterator[list[logging.LogRecord]]:
    """Holds back what figures say: of a figure that is not drawn, nobody wants to hear."""
    records: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    for speaker in (selection.log, diagnostics.log):
        speaker.addFilter(hold)
    try:
        yield records
    finally:
        for speaker in (selection.log, diagnostics.log):
            speaker.removeFilter(hold)
