"""The local launcher: a pool of ``questtrain train`` processes on this machine's GPUs or cores."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from questtrain.config.ranges import SIZE, Choices, Interval
from questtrain.errors import UserError
from questtrain.process import available_cores
from questtrain.process.signals import StopRequests, on_stop_signals
from questtrain.sweep.attempt import Attempt, claim, read_outcome
from questtrain.sweep.display import Lines, watcher
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.launchers.local_places import Place, Places, check_devices, place_on
from questtrain.sweep.machine import visible_gpus
from questtrain.sweep.state import QueuedRun, ended

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_CLAIMS = 1.0
"""How often a run that another sweeper trains is asked for."""

SIGNALS = {1: signal.SIGINT, 2: signal.SIGINT}
"""To a run, by urgency: the first lets it save a checkpoint, the second stops it at once."""


@dataclass
class LocalLauncher:
    """A pool over this machine's GPUs, or its CPU cores where it has none.

    ``workers`` bounds the runs at a time; None: as many as ``gpus`` (None: all that are visible)
    hold, ``runs_per_gpu`` each (None: as many as fit into memory, at most four), or one for every
    ``threads`` cores.
    """

    kind: Annotated[str, Choices(("local",))] = "local"
    workers: Annotated[int | None, Interval(SIZE)] = None
    gpus: Annotated[list[int] | None, Interval("[0, 2^31)")] = None
    runs_per_gpu: Annotated[int | None, Interval(SIZE)] = None
    threads: Annotated[int, Interval(SIZE)] = 1

    def places(self, jobs: Sequence[Job]) -> Places:
        """The visible GPUs; CPU cores where there are none, or every job asks for ``device=cpu``.

        UserError for GPUs that are not there, or that the runs do not ask for.
        """
        on_cpu = all("device=cpu" in job.words for job in jobs)
        gpus = [] if on_cpu else visible_gpus(self.gpus)
        if not gpus and self.gpus:
            raise UserError("launcher.gpus is set, but every run has device=cpu.")
        if gpus:
            check_devices(jobs)
            return Places([place_on(gpu, self.runs_per_gpu) for gpu in gpus], self.workers)
        runs = self.workers or max(1, available_cores() // self.threads)
        return Places([Place("CPU", runs, threads=self.threads)], workers=None)

    def check(self, jobs: Sequence[Job]) -> None:
        """UserError where the runs find no `places`."""
        self.places(jobs)

    def run(self, jobs: Sequence[Job], folder: Path, command: str) -> int:
        """Train what is neither done nor failed, longest first, until nothing is left. Runs that
        other sweepers train are waited for, and taken over if they are left unfinished."""
        with watcher(jobs) as lines:
            return _Pool(jobs, self.places(jobs), lines).run()

    @staticmethod
    def queued(folder: Path) -> Mapping[str, QueuedRun]:
        """None: what runs here holds its claim, what does not is not begun."""
        return {}


class _Pool:
    """The runs that wait, those that train, and what has been asked by signals."""

    def __init__(self, jobs: Sequence[Job], places: Places, watcher: Lines) -> None:
        self.places, self.watcher = places, watcher
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
                    attempt.process.send_signal(signal.SIGTERM)
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
                self.watcher.ended(attempt.job, outcome)

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
                self.watcher.trained_elsewhere(job)
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
            attempt.process.send_signal(SIGNALS.get(self.passed_on, signal.SIGKILL))


def own_words(job: Job, place: Place) -> tuple[str, ...]:
    """The number of threads, on CPUs. Sums depend on it, so a run goes on with what it had."""
    if place.threads is None or any(word.startswith("train.threads=") for word in job.words):
        return ()
    before = read_outcome(job)
    return (before and before.extra) or (f"train.threads={place.threads}",)
