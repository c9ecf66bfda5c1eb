"""What a rank's main thread is at: told by it in a few assignments, read by the rank's watch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Progress:
    """Collectives entered so far, whether one is under way, and whether the rank is in a step.

    All ranks enter the same collectives in the same order: of ranks that wait for each other, the
    one that has entered the fewest is waited for.
    """

    def __init__(self) -> None:
        self.collectives = 0
        self._waits = self._in_step = False
        self._since = time.monotonic()

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Inside the block this rank waits for the others."""
        self.collectives += 1
        self._waits = True
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._waits = False

    def restart(self) -> None:
        """Count the time of a step from now: the process did not run before."""
        self._since = time.monotonic()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside the block this rank has no long work: its batch is read, its step computed."""
        self._since = time.monotonic()
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    def report(self, patience: float) -> Report:
        """As it is now; where a step has gone on for half of ``patience``, with the place."""
        seconds = time.monotonic() - self._since if self._in_step and not self._waits else 0.0
        return Report(self.collectives, seconds, _place() if seconds > patience / 2 else "")


@dataclass(frozen=True)
class Report:
    """A rank's main thread: ``collectives`` entered, ``seconds`` in a step since the last of them
    (0: in none, or waiting for others), and the ``place`` in the code if that is long."""

    collectives: int
    seconds: float
    place: str = ""


def _place() -> str:
    """``loader.py:88 (batch)``: the innermost line of ours that the main thread is at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("questtrain."):
            file = frame.f_code.co_filename.rpartition("/")[2]
            return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return ""
