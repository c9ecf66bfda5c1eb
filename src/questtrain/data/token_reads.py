"""Token files, read while a run goes on: by reads, never through a memory map.

Where a mapped file is truncated, or its disk fails, the process dies of SIGBUS without a word. A
read says what is wrong, and can be tried again; it costs some microseconds more (docs/data.md).
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def _most_open() -> int:
    """A quarter of the files that the process may have open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if allowed == resource.RLIM_INFINITY else max(16, min(4096, allowed // 4))


@dataclass(frozen=True)
class Stamp:
    """What a file's system says of its content without reading it: its bytes, and when they were
    last written, in nanoseconds."""

    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path | int) -> Stamp:
        """The stamp of a file, or of an open descriptor; OSError as `os.stat`."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns)


class _Handle:
    """A descriptor to read from, closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(_most_open())
def _handle(path: str, bytes: int, mtime_ns: int) -> _Handle:
    """A file of that stamp, opened once, or again when many others were read since."""
    return _Handle(path)


def read_at(path: Path, stamp: Stamp, offset: int, into: NDArray[Any]) -> bool:
    """Fill the contiguous array ``into`` with the file's bytes from ``offset`` on; whether there
    were enough. OSError, with the file's name, leaves nothing open that is of no use."""
    try:
        handle = _handle(str(path), stamp.bytes, stamp.mtime_ns)
        done = os.preadv(handle.descriptor, [into.data], offset)
        while 0 < done < into.nbytes:  # a signal, or more than the 2 GB that one call reads
            rest = into.data.cast("B")[done:]
            more = os.preadv(handle.descriptor, [rest], offset + done)
            if not more:
                break
            done += more
    except OSError as error:
        _handle.cache_clear()  # after ESTALE only a new descriptor reads again
        raise OSError(error.errno or errno.EIO, error.strerror, str(path)) from error
    return done == into.nbytes
