"""File systems that fail for a moment: what failed is done again a few times, with growing pauses.

A network's file system answers so while a server restarts or a path to it is down. A disk that is
full, a file that is absent or not allowed is no such case: nothing changes by waiting.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TypeVar

from questtrain.errors import ReadFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

TRANSIENT = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENOTCONN,  # FUSE, while its daemon is away
    errno.EREMOTEIO,
)
"""What a file system says that may work again soon."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each further try: a minute together."""


def patiently(what: str, work: Callable[[], T]) -> T:
    """What ``work`` returns, which leaves nothing half done where it raises: after an OSError of
    `TRANSIENT` it is called again, after each of the `PAUSES`, and a warning says so.

    ``what`` is in the warning, and the file that the error names, if it is not in ``what``. The
    last error passes.
    """
    for number, pause in enumerate(PAUSES, 1):
        try:
            return work()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            reason, file = os.strerror(error.errno), error.filename
            at = f" at {file}" if file and str(file) not in what else ""
            of = f"{number} of {len(PAUSES)}"
            log.warning("%s: %s%s; trying again in %g s (%s)", what, reason, at, pause, of)
            sleep(pause)
    return work()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads ``path``, patience included: an OSError of `TRANSIENT` is a ReadFailed
    that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in TRANSIENT or isinstance(error, ReadFailed):
            raise
        named = str(error.filename or path)
        raise ReadFailed(error.errno, os.strerror(error.errno), named) from error


def read_patiently(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a file, with `patiently`'s patience; then ReadFailed."""
    with reading(path):
        return patiently(f"reading {path}", lambda: read(path))
