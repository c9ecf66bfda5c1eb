"""The cache folder: where it is, who writes into it, and what killed writers left there."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from questtrain.config.schema import DataConfig
from questtrain.store.lock_scope import NO_LOCKS

log = logging.getLogger(__name__)


def cache_dir(config: DataConfig) -> Path:
    """``config.cache_dir`` as an absolute path."""
    return Path(config.cache_dir).expanduser().absolute()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two preparers do not do the same work twice.

    Correctness does not rest on it: every file is written under a name of its process and renamed.
    On a file system without locks both work, and write the same bytes.
    """
    with (folder / ".lock").open("a") as file:
        try:
            _lock(file.fileno(), folder)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s has no file locks: going on without one", folder)
            yield
            return
        try:
            _remove_leftovers(folder)
            yield
        finally:
            _remove_leftovers(folder)  # of workers that were ended in the middle


def _lock(descriptor: int, folder: Path) -> None:
    """Lock until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is preparing %s; waiting for it", folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files whose process is gone."""
    for path in folder.rglob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if match and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
