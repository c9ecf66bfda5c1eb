"""Every figure that the given runs allow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from typing import Any

from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES
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
            with captured() as records:
                found[name] = figure.data(paths)
        except UserError as error:
            log.info("not drawn: %s (%s): %s", name, figure.alias, error)
            continue
        for record in records:
            if record.getMessage() not in said and log.isEnabledFor(record.levelno):
                said.add(record.getMessage())
                log.handle(record)
    return found


@contextmanager
def captured() -> Iterator[list[logging.LogRecord]]:
    """What the law wing says in the log meanwhile: of a figure that is not drawn, nobody wants to
    hear, and the report says it on its page."""
    log = logging.getLogger("questtrain.scaling")
    handlers, level, propagate = log.handlers, log.level, log.propagate
    handler = BufferingHandler(sys.maxsize)
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    try:
        yield handler.buffer
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
