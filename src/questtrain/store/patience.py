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


def tried_again(what: str, work: Callable[[], T], passing: Callable[[Exception], str | None]) -> T:
    """What ``work`` returns, which leaves nothing half done where it raises: after an error that
    ``passing`` has a reason for it is called again, after each of the `PAUSES`, and a warning says
    so. The last error passes, and any other."""
    for number, pause in enumerate(PAUSES, 1):
        try:
            return work()
        except Exception as error:
            reason = passing(error)
            if reason is None:
                raise
            of = f"{number} of {len(PAUSES)}"
            log.warning("%s: %s; trying again in %g s (%s)", what, reason, pause, of)
            sleep(pause)
    return work()


def patiently(what: str, work: Callable[[], T]) -> T:
    """`tried_again` after an OSError of `TRANSIENT`; the warning says ``what`` and the file that
    the error names, if it is not in ``what``."""
    return tried_again(what, work, lambda error: passing_reason(error, what))


def passing_reason(error: BaseException | None, what: str = "") -> str | None:
    """What a file system said that may work again soon; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in TRANSIENT:
        return None
    file = error.filename
    at = f" at {file}" if file and str(file) not in what else ""
    return f"{os.strerror(error.errno)}{at}"


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
