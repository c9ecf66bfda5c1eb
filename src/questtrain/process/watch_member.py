"""The watch of a rank that is not the first: it reports to rank 0's, and hears what that finds."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from questtrain.process.json_lines import JsonLines
from questtrain.process.roster import Roster
from questtrain.process.watch import Connection, Verdict, Watch
from questtrain.process.watch_hub import dead, silent

SECONDS_TO_CONNECT = 5.0
"""To one of rank 0's addresses."""


def connect(addresses: Sequence[str], port: int) -> socket.socket | None:
    """To rank 0's watch, by the first of its addresses that answers; None: by none."""
    for address in addresses:
        with suppress(OSError):
            return socket.create_connection((address, port), timeout=SECONDS_TO_CONNECT)
    return None


class Spoke(Watch):
    """Any rank's but the first."""

    def __init__(
        self, rank: int, roster: Roster, patience: float, connection: socket.socket, word: str
    ) -> None:
        """``connection`` is to the `Hub`, which asks for the secret ``word``."""
        super().__init__(rank, roster, patience)
        self._hub = JsonLines(connection)
        self._heard = time.monotonic()
        self._told: Verdict | None = None
        self._hub.send({"word": word, "rank": rank})
        self.attach(self._hub)
        # Rank 1 speaks if rank 0 is gone: the others wait for it to have spoken.
        self._hub_patience = patience + (0 if rank == 1 else 2 * self.beat)

    def _hear(self, source: Connection) -> None:
        for message in self._hub.receive():
            self._heard = time.monotonic()
            if "verdict" in message:
                verdict = message["verdict"]
                self._told = Verdict(**{**verdict, "ranks": tuple(verdict["ranks"])})
            elif "goodbye" in message:
                self._told = self._told or (
                    Verdict((0,), "left", "") if message["goodbye"] else None
                )
                self.is_over = True
        if self._hub.has_ended:
            self.detach(self._hub)
            if not self.is_over:
                self._told = self._told or dead([0], self.roster)

    def _restart(self, now: float) -> None:
        self._heard = now

    def _send_beats(self) -> None:
        self._hub.send({"report": asdict(self.progress.report(self.patience))})

    def _judge(self, now: float) -> Verdict | None:
        if self._told is None and now - self._heard > self._hub_patience:
            return silent([0], self.roster, self.patience)
        return self._told

    def _pass_on(self, verdict: Verdict) -> None:
        """Rank 0, if it was only stopped, hears of what happened when it goes on."""
        if 0 in verdict.ranks:
            self._hub.send({"verdict": asdict(verdict)})

    def _say_goodbye(self, alone: bool) -> None:
        self._hub.send({"goodbye": alone})
