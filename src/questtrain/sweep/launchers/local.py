"""The local launcher: a pool of ``questtrain train`` processes on this machine's GPUs or cores."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from questtrain.process.signals import StopRequests, on_stop_signals
from questtrain.sweep.attempt import Attempt, Outcome, claim, read_outcome
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.launchers.config import LocalConfig, check_local
from questtrain.sweep.launchers.places import Place, find_places
from questtrain.sweep.state import Status, ended

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_CLAIMS = 1.0
"""How often a run that another sweeper trains is asked for."""


SIGNALS = {1: signal.SIGINT, 2: signal.SIGINT}
"""To a run, by urgency: the first lets it save a checkpoint, the second stops it at once."""


class Watcher(Protocol):
    """Who is told what the pool does; see `questtrain.sweep.display`."""

    def began(self, places: str, runs: int) -> None: ...
    def started(self, job: Job, place: str) -> None: ...
    def elsewhere(self, job: Job) -> None: ...
    def over(self, job: Job, outcome: Outcome) -> None: ...
    def found(self, job: Job, status: Status) -> None: ...
    def stopping(self, runs: int) -> None: ...
    def tick(self) -> None: ...


def run_local(jobs: Sequence[Job], config: LocalConfig, watcher: Watcher) -> int:
    """Train what is neither done nor failed, longest first, until nothing is left.

    Returns the number of the signal that stopped it, 0 otherwise. Runs that other sweepers train
    are waited for, and taken over if they are left unfinished. UserError for bad settings.
    """
    check_local(config)
    return _Pool(jobs, config, watcher).run()


class _Pool:
    """The runs that wait, those that train, and what has been asked by signals."""

    def __init__(self, jobs: Sequence[Job], config: LocalConfig, watcher: Watcher) -> None:
        self.places = find_places(jobs, config)
        self.watcher = watcher
        self.waiting = [job for job in longest_first(jobs) if ended(job) is None]
        self.running: list[tuple[Attempt, Place]] = []
        self.asked_again: dict[str, float] = {}  # name → when a run of others is next asked for
        self.asked, self.passed_on = StopRequests(), 0

    def run(self) -> int:
        self.watcher.began(str(self.places), len(self.waiting))
        with on_stop_signals(self.asked.note):
            try:
                while self.running or (self.waiting and not self.asked.number):
                    self._look()
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            except BaseException:  # such as a full disk: the runs save what they have
                for attempt, _ in self.running:
                    attempt.send(signal.SIGTERM)
                raise
        return self.asked.number

    def _look(self) -> None:
        self._reap()
        if self.asked.urgency > self.passed_on:
            self._pass_on()
        elif not self.asked.number:
            self._fill()
        self.watcher.tick()

    def _reap(self) -> None:
        for attempt, place in list(self.running):
            outcome = attempt.finish()
            if outcome is not None:
                self.running.remove((attempt, place))
                place.running.remove(attempt.job)
                self.watcher.over(attempt.job, outcome)

    def _fill(self) -> None:
        """Start runs in order while there is room: the next one waits for its room, and none that
        is shorter overtakes it; one that others train is passed over."""
        for job in list(self.waiting):
            if time.monotonic() < self.asked_again.get(job.name, 0.0):
                continue
            place = self.places.take(job)
            if place is None or self.asked.number:
                return
            if not self._start(job, place):
                place.running.remove(job)

    def _start(self, job: Job, place: Place) -> bool:
        """Claim and start the run; False where others train it or have ended it meanwhile."""
        descriptor = claim(job)
        if descriptor is None:
            if job.name not in self.asked_again:
                self.watcher.elsewhere(job)
            self.asked_again[job.name] = time.monotonic() + SECONDS_BETWEEN_CLAIMS
            return False
        self.waiting.remove(job)
        status = ended(job)
        if status is not None:
            os.close(descriptor)
            self.watcher.found(job, status)
            return False
        attempt = Attempt(job, descriptor, own_words(job, place), place.environment)
        self.running.append((attempt, place))
        self.watcher.started(job, place.label)
        return True

    def _pass_on(self) -> None:
        """The first signal lets the runs save a checkpoint, the second Ctrl-C stops them at once,
        the third kills them."""
        if not self.passed_on:
            self.watcher.stopping(len(self.running))
        self.passed_on += 1
        for attempt, _ in self.running:
            attempt.send(SIGNALS.get(self.passed_on, signal.SIGKILL))


def own_words(job: Job, place: Place) -> tuple[str, ...]:
    """The number of threads, on CPUs. Sums depend on it, so a run goes on with what it had."""
    if place.threads is None or any(word.startswith("train.threads=") for word in job.words):
        return ()
    before = read_outcome(job)
    return (before and before.extra) or (f"train.threads={place.threads}",)
