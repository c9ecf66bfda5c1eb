"""A rank's watch over the others: who of them is gone or hangs, said once, and then all end.

A thread of each rank holds a connection to rank 0's (`questtrain.process.watch_hub`,
`questtrain.process.watch_member`), by which it says every few seconds what its main thread is at.
When a process dies its kernel closes the connection, at once; one that is stopped, or whose machine
is gone, falls silent; one that is stuck says so itself. What is then found, a `Verdict`, all hear.

Ending is the main thread's, whose next collective fails; where it does not, because a GPU waits for
the dead rank's, the watch ends the process.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from questtrain.process.json_lines import JsonLines
from questtrain.process.progress import Progress
from questtrain.process.ranks import HAS_PARENT, PEER_LOST
from questtrain.process.roster import Roster, lowest_beside, speakers

SECONDS_BETWEEN_BEATS = 5.0

SECONDS_TO_END_ITSELF = 10.0
"""How long a rank's main thread has, after a verdict, to end in its own way."""

AGAIN = "The same command continues from the last checkpoint."


Connection = socket.socket | JsonLines


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end: the ``ranks`` to blame; ``kind``, of what ("died", "silent", "stuck", or
    "left": they have said why themselves); ``text``, what is said of it once."""

    ranks: tuple[int, ...]
    kind: str
    text: str

    @property
    def exit_code(self) -> int:
        """A dead rank's parent, if there is one, says of which signal it died."""
        return PEER_LOST if self.is_parents else 1

    @property
    def is_parents(self) -> bool:
        """Whether the parent that started all ranks is the one to speak."""
        return self.kind == "died" and HAS_PARENT in os.environ


class Watch(ABC):
    """What the first rank's watch and the others' share: the thread, and the end."""

    def __init__(self, rank: int, roster: Roster, patience: float) -> None:
        """``patience``: seconds that a rank may be silent, or stuck in a step.

        Its own thread's: ``is_over``, nobody is to be watched any more; ``look_at``, the time to
        judge though nothing comes.
        """
        self.rank, self.roster, self.patience = rank, roster, patience
        self.progress = Progress()
        self.beat = min(SECONDS_BETWEEN_BEATS, patience / 4)
        self._verdict: Verdict | None = None
        self._found, self._closed = threading.Event(), threading.Event()
        self.look_at = float("inf")
        self.is_over = False
        self.connections: set[Connection] = set()
        self.selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self.connections.add(self._wake)
        self.attach(self._woken)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """A child that is forked holds no connection of ours open."""
        os.register_at_fork(after_in_child=self._release)
        self._thread.start()

    def verdict(self, seconds: float) -> Verdict | None:
        """What was found, which may take some ``seconds`` still; None: nothing."""
        return self._verdict if self._found.wait(seconds) else None

    def close(self, alone: bool) -> None:
        """This rank's part is over; ``alone``: the others do not know of it yet."""
        self._closed.set()
        self._wake.send(b".")
        self._thread.join(timeout=2 * self.beat)
        self._say_goodbye(alone)
        self._release()

    def _run(self) -> None:
        next_beat, looked = 0.0, time.monotonic()
        while not self._closed.is_set() and not self.is_over:
            wait = min(next_beat, self.look_at) - looked
            for key, _ in self.selector.select(max(0.0, wait)):
                if key.fileobj is not self._woken:
                    self._hear(cast(Connection, key.fileobj))
            now, before = time.monotonic(), looked
            looked = now
            if now - before > 2 * self.beat:  # stopped itself, perhaps with all others, by Slurm
                self.progress.restart()
                self._restart(now)
            if now >= next_beat:
                self._send_beats()
                next_beat = now + self.beat
            if (verdict := self._judge(now)) is not None:
                self._conclude(verdict)
                return

    def _conclude(self, verdict: Verdict) -> None:
        """Make it known, end what hangs beside this rank, then this rank, if it does not itself."""
        self._pass_on(verdict)
        if self._speaks_of(verdict):
            print(f"stopped: {verdict.text}", file=sys.stderr, flush=True)
        self._verdict = verdict
        self._found.set()
        if verdict.kind == "silent" and HAS_PARENT not in os.environ:
            self._kill(verdict.ranks)
        if not self._closed.wait(SECONDS_TO_END_ITSELF):
            os._exit(verdict.exit_code)

    def _speaks_of(self, verdict: Verdict) -> bool:
        if verdict.kind == "left" or verdict.is_parents:
            return False
        return self.rank in speakers(verdict.ranks, self.roster)

    def _kill(self, ranks: tuple[int, ...]) -> None:
        """A stopped process would hold its GPU, and the run folder, from who comes after it."""
        for rank in ranks:
            if self.rank == lowest_beside(rank, ranks, self.roster):
                with suppress(OSError):
                    os.kill(self.roster[rank].pid, signal.SIGKILL)

    @abstractmethod
    def _hear(self, source: Connection) -> None:
        """Read what has come."""

    @abstractmethod
    def _restart(self, now: float) -> None:
        """Count the silence of others from ``now``."""

    @abstractmethod
    def _send_beats(self) -> None:
        """Show that this rank is there."""

    @abstractmethod
    def _judge(self, now: float) -> Verdict | None:
        """What has come to light until ``now``."""

    @abstractmethod
    def _pass_on(self, verdict: Verdict) -> None:
        """Tell who may not know it."""

    @abstractmethod
    def _say_goodbye(self, alone: bool) -> None:
        """So that the end of the connection is no death."""

    def _release(self) -> None:
        """Close every connection of this process."""
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self.selector.close()

    def attach(self, connection: Connection) -> None:
        """From now on `_hear` is called when something comes."""
        self.connections.add(connection)
        self.selector.register(connection, selectors.EVENT_READ)

    def detach(self, connection: Connection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        self.selector.unregister(connection)
        connection.close()
