"""How far each run of a sweep is, read from disk alone: by whoever sweeps, and by others."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from questtrain.errors import counted
from questtrain.store.files import last_lines
from questtrain.store.json_file import DamagedJson
from questtrain.store.metric_rows import metric_row
from questtrain.store.run_record import RunRecord, read_run_record
from questtrain.sweep.attempt import is_claimed, read_outcome
from questtrain.sweep.job import Job

Status: TypeAlias = Literal["done", "running", "failed", "waiting"]
STATUSES: tuple[Status, ...] = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class State:
    """A job, its status, and what the run has said so far (None where it has not).

    ``step`` is the last one logged. ``seconds_left`` is of a running run, at its present rate.
    ``reason`` says why a run failed, why one that waits was left unfinished (killed, a full disk),
    or where in a launcher's queue it is.
    """

    job: Job
    status: Status
    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    seconds_left: float | None = None
    reason: str | None = None

    @property
    def flops_done(self) -> float:
        return self.job.flops * min(1.0, self.step / self.job.steps)

    @property
    def flops_per_second(self) -> float | None:
        if self.tokens_per_second is None:
            return None
        return self.tokens_per_second * self.job.flops / self.job.tokens


@dataclass(frozen=True)
class QueuedRun:
    """What a launcher's queue knows of a run: whether it is ``running``; ``where``, in words."""

    running: bool
    where: str


@dataclass(frozen=True)
class Progress:
    """A whole sweep: runs by status, the done share of its FLOPs, the seconds left (None where no
    run has shown its speed yet)."""

    counts: dict[Status, int]
    share: float
    seconds_left: float | None


def read_states(jobs: Iterable[Job], queued: Mapping[str, QueuedRun] | None = None) -> list[State]:
    """The state of each job, in the same order; those that are ``queued``, by name, say so."""
    return [_in_queue(read_state(job), (queued or {}).get(job.name)) for job in jobs]


def _in_queue(state: State, queued: QueuedRun | None) -> State:
    """A run that has not ended is what its queue says: a file lock may not be seen across nodes."""
    if queued is None or state.status in ("done", "running"):
        return state
    return replace(state, status="running" if queued.running else "waiting", reason=queued.where)


def read_state(job: Job) -> State:
    """One job's state. A run record that says completed is done, whoever trained it."""
    record = read_record(job.folder)
    if record is not None and record.status == "completed":
        return _state(job, "done", [record.columns | {"step": job.steps}])
    rows = _last_rows(job.folder / "metrics.jsonl")
    if is_claimed(job):
        return _state(job, "running", rows)
    reason = _failure(job, record)
    if reason:
        return _state(job, "failed", rows, reason)
    outcome = read_outcome(job)
    return _state(job, "waiting", rows, outcome.unasked if outcome else None)


def ended(job: Job) -> Status | None:
    """``done`` or ``failed`` where nothing is left to do, whoever holds the claim; else None."""
    record = read_record(job.folder)
    if record is not None and record.status == "completed":
        return "done"
    return "failed" if _failure(job, record) else None


def _failure(job: Job, record: RunRecord | None) -> str | None:
    """Why the run failed; None where it did not, or waits to be tried again."""
    outcome = read_outcome(job)
    if outcome is not None:
        return (outcome.reason or f"exit code {outcome.exit_code}") if outcome.failed else None
    if record is None or record.status != "diverged":
        return None
    if record.rollbacks:
        return f"diverged, after {counted(int(record.rollbacks), 'rollback', 'rollbacks')}"
    return "diverged: the loss became NaN or infinite"


def read_record(run_folder: Path) -> RunRecord | None:
    """The run's record; None where the run has not ended or the record is damaged."""
    with suppress(DamagedJson):
        return read_run_record(run_folder)
    return None


def progress(states: Sequence[State]) -> Progress:
    """Time left: what is left of each run at its model's rate, shared among the runs that run now
    (one, where none does), and at least as long as the longest of those takes."""
    found = Counter(state.status for state in states)
    total = sum(state.job.flops for state in states)
    done = sum(state.flops_done for state in states)
    return Progress(
        {status: found[status] for status in STATUSES},
        done / total if total else 0.0,
        _seconds_left(states),
    )


def _seconds_left(states: Sequence[State]) -> float | None:
    open_states = [state for state in states if state.status in ("running", "waiting")]
    if not open_states:
        return 0.0
    seconds = []
    for state in open_states:
        rate = state.flops_per_second or _typical_rate(state.job, states)
        if rate is None:
            return None
        seconds.append((state.job.flops - state.flops_done) / rate)
    running = [
        s for s, state in zip(seconds, open_states, strict=True) if state.status == "running"
    ]
    return max([sum(seconds) / max(1, len(running)), *running])


def _typical_rate(job: Job, states: Sequence[State]) -> float | None:
    """Median FLOP/s of the runs of the same model, or of all where none of those has one."""
    rates = [(s.job.model, s.flops_per_second) for s in states if s.flops_per_second]
    same = [rate for model, rate in rates if model == job.model]
    chosen = same or [rate for _, rate in rates]
    return statistics.median(chosen) if chosen else None


def _state(
    job: Job, status: Status, rows: list[dict[str, Any]], reason: str | None = None
) -> State:
    """With the last number of each column that stands in the ``rows``."""

    def last(key: str) -> Any:
        return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)

    step, rate = last("step") or 0, last("tokens_per_second")
    left = None
    if status == "running" and rate:
        left = (job.steps - step) * (job.tokens / job.steps) / rate
    losses = last("train_loss"), last("val_loss")
    return State(job, status, step, *losses, rate, last("mfu"), left, reason)


def _last_rows(metrics: Path) -> list[dict[str, Any]]:
    """The last rows of ``metrics.jsonl``; lines that are torn or damaged are left out."""
    found = (metric_row(line) for line in last_lines(metrics))
    return [row for row in found if row is not None]
