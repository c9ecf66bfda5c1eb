"""Rank 0's watch: it hears every other rank, and finds who is gone or hangs."""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from questtrain.process.json_lines import JsonLines
from questtrain.process.progress import Report
from questtrain.process.roster import Roster, named
from questtrain.process.watch import AGAIN, Connection, Verdict, Watch

SECONDS_TO_SETTLE = 0.5
"""After one rank has died: its machine's others may follow."""

MOST_STRANGERS = 1024
"""Connections that have not said the run's secret word."""


class Hub(Watch):
    """The first rank's."""

    def __init__(self, roster: Roster, patience: float, listener: socket.socket, word: str) -> None:
        """``listener`` accepts the other ranks, who know the secret ``word``."""
        super().__init__(0, roster, patience)
        self._word = word
        self._strangers = 0
        self._ranks: dict[JsonLines, int] = {}
        self._heard: dict[int, float] = {}
        self._reports: dict[int, Report] = {}
        self._died: list[int] = []
        self._told: Verdict | None = None
        listener.setblocking(False)
        self._listener = listener
        self.attach(listener)

    def _hear(self, source: Connection) -> None:
        if not isinstance(source, JsonLines):
            self._accept()
            return
        for message in source.receive():
            if source in self._ranks:
                self._note(self._ranks[source], message)
            elif not self._welcome(source, message):
                source.has_ended = True
        if source.has_ended:
            self._drop(source)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if self._strangers >= MOST_STRANGERS:
            connection.close()
            return
        self._strangers += 1
        self.attach(JsonLines(connection))

    def _welcome(self, source: JsonLines, message: Mapping[str, Any]) -> bool:
        """Whether this is one of ours, from now on known by its rank."""
        rank, word = message.get("rank"), str(message.get("word"))
        if not hmac.compare_digest(word.encode(), self._word.encode()):
            return False
        if not isinstance(rank, int) or not 0 < rank < len(self.roster) or rank in self._heard:
            return False
        self._strangers -= 1
        self._ranks[source], self._heard[rank] = rank, time.monotonic()
        return True

    def _note(self, rank: int, message: Mapping[str, Any]) -> None:
        self._heard[rank] = time.monotonic()
        if "report" in message:
            self._reports[rank] = Report(**message["report"])
        elif "verdict" in message:
            self._told = Verdict(**{**message["verdict"], "ranks": (0,)})
        elif "goodbye" in message:
            self._forget(rank)
            if message["goodbye"]:
                self._told = Verdict((rank,), "left", "")

    def _drop(self, source: JsonLines) -> None:
        """The connection has ended: without a goodbye, its process is dead."""
        self.detach(source)
        rank = self._ranks.pop(source, None)
        if rank is None:
            self._strangers -= 1
        elif rank in self._heard:
            self._forget(rank)
            self._died.append(rank)
            self.look_at = min(self.look_at, time.monotonic() + SECONDS_TO_SETTLE)

    def _forget(self, rank: int) -> None:
        self._heard.pop(rank, None)
        self._reports.pop(rank, None)

    def _restart(self, now: float) -> None:
        self._heard = dict.fromkeys(self._heard, now)
        self._reports.clear()

    def _send_beats(self) -> None:
        for connection in self._ranks:
            connection.send({})

    def _judge(self, now: float) -> Verdict | None:
        if self._told is not None:
            return self._told
        if self._died:
            return dead(self._died, self.roster) if now >= self.look_at else None
        quiet = [rank for rank, heard in self._heard.items() if now - heard > self.patience]
        return silent(quiet, self.roster, self.patience) if quiet else self._stuck()

    def _stuck(self) -> Verdict | None:
        """Of the ranks that the others wait for, those that have been in a step for too long."""
        reports = {**self._reports, 0: self.progress.report(self.patience)}
        fewest = min(report.collectives for report in reports.values())
        waited_for = {rank: r.seconds for rank, r in reports.items() if r.collectives == fewest}
        if max(waited_for.values()) <= self.patience:
            return None
        recent = self.patience - 2 * self.beat  # what they say may be as old as a beat
        ranks = [rank for rank, seconds in waited_for.items() if seconds > recent]
        places = ", ".join(sorted({reports[rank].place for rank in ranks} - {""}))
        text = (
            f"{named(ranks, self.roster)} hung in a step for {self.patience:g} s"
            f" (train.rank_timeout){places and f', in {places}'}. {AGAIN}"
        )
        return Verdict(tuple(sorted(ranks)), "stuck", text)

    def _pass_on(self, verdict: Verdict) -> None:
        for connection in self._ranks:
            connection.send({"verdict": asdict(verdict)})

    def _say_goodbye(self, alone: bool) -> None:
        for connection in self._ranks:
            connection.send({"goodbye": alone})


def dead(ranks: Sequence[int], roster: Roster) -> Verdict:
    """Of ranks whose connection ended without a word."""
    text = (
        f"{named(ranks, roster)} died without a word: killed, crashed or out of memory; what"
        f" started it may say of which signal. {AGAIN}"
    )
    return Verdict(tuple(sorted(ranks)), "died", text)


def silent(ranks: Sequence[int], roster: Roster, patience: float) -> Verdict:
    """Of ranks that no sign of life came from."""
    text = (
        f"{named(ranks, roster)} gave no sign of life for {patience:g} s (train.rank_timeout):"
        f" stopped, or the machine or its network is gone. {AGAIN}"
    )
    return Verdict(tuple(sorted(ranks)), "silent", text)
