"""The signals that ask a command to end.

Ctrl-C, SIGTERM (`kill`, clusters), SIGHUP (a terminal or ssh session that closes), SIGUSR1 and
SIGUSR2 (what clusters send ahead of a time limit or a preemption) all mean: save, then stop.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from questtrain.errors import TrainingStopped

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Stay ignored where they are when the process starts: by nohup, or by a shell's trap."""


class StopSignal(KeyboardInterrupt):
    """A stop signal where no step has to be saved. Like Ctrl-C's own exception it passes every
    ``except Exception``. ``is_spokesman``: of several processes of one run, this one says so."""

    def __init__(self, number: int, text: str | None = None) -> None:
        name = signal.Signals(number).name
        super().__init__(text or f"{name}; the same command starts again.")
        self.number = number
        self.exit_code = 128 + number
        self.is_spokesman = os.environ.get("RANK", "0") == "0"


class Interrupted(TrainingStopped):
    """A signal asked the run to stop; what it has done is saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(
            f"saved step {step}; the same command continues from here."
            if step
            else "no step was made yet; the same command starts again."
        )
        self.exit_code = 128 + signal_number


@dataclass
class StopRequests:
    """The stop signals that a process was sent: the first one's ``number`` (0: none), and how often
    Ctrl-C came."""

    number: int = 0
    ctrl_c: int = 0

    def note(self, number: int) -> None:
        self.number = self.number or number
        self.ctrl_c += number == signal.SIGINT

    @property
    def urgency(self) -> int:
        """0: go on. 1: save and stop. More with every Ctrl-C after the first one, and with nothing
        else: a cluster sends its signals to all processes of a job, a parent passes them on, and
        Ctrl-C after SIGTERM must not lose what SIGTERM asked for."""
        return max(1, self.ctrl_c) if self.number else 0


class StopAfterStep(StopRequests):
    """Of a process that looks at them between its steps, and saves the last one."""

    def hear(self, number: int) -> None:
        """The first signal is for after the current step; a second Ctrl-C raises StopSignal."""
        asked_before = self.number
        self.note(number)
        if self.urgency > 1:
            raise StopSignal(number, "at once; the steps since the last checkpoint are lost.")
        if asked_before and number != signal.SIGINT:
            return
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        log.warning("stopping after this step and saving a checkpoint%s", again)


@contextmanager
def on_stop_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call ``handler`` with the number of every stop signal inside the block.

    Only the main thread can: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        handler(number)

    taken = [n for n in STOP_SIGNALS if n not in MAY_BE_IGNORED or not _is_ignored(n)]
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


@contextmanager
def stops_raise() -> Iterator[StopRequests]:
    """Raise StopSignal at a stop signal inside the block; one that comes while that is under way is
    only counted, except for a second Ctrl-C. What was sent stands in the value."""
    requests = StopRequests()

    def raise_it(number: int) -> None:
        is_first = not requests.number
        requests.note(number)
        if is_first or requests.urgency > 1:
            raise StopSignal(number)

    with on_stop_signals(raise_it):
        yield requests


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes started inside the block have them blocked: one that has hardly begun would die of
    them without a word."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _leave_closed_terminal() -> None:
    """What is still printed goes nowhere: writing to a terminal that is gone is an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
