"""A sweep on the terminal and as JSON: the plan of its runs, their states, what just happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from questtrain.errors import counted
from questtrain.scaling.numbers import count_text, duration
from questtrain.sweep.attempt import Outcome
from questtrain.sweep.console import console, literal_console
from questtrain.sweep.estimate import Speed
from questtrain.sweep.job import Job
from questtrain.sweep.state import (
    STATUSES,
    Progress,
    State,
    Status,
    progress,
    read_state,
    read_states,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

log = logging.getLogger(__name__)

COLORS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}
SECONDS_BETWEEN_FRAMES = 1.0


def plan_json(states: Sequence[State], speed: Speed) -> dict[str, Any]:
    """What ``--dry-run --json`` prints: tokens, FLOPs, bytes and GPU-hours, a run and in all."""
    return {
        "gpu": speed.gpu,
        "peak_flops": speed.peak,
        "mfu": speed.mfu,
        "mfu_source": speed.source,
        "totals": {
            "runs": len(states),
            "tokens": sum(state.job.tokens for state in states),
            "flops": sum(state.job.flops for state in states),
            "gpu_hours": sum(speed.gpu_hours(state.job) for state in states),
        },
        "runs": [
            {
                **_job_json(state.job),
                "gpu_hours": speed.gpu_hours(state.job),
                "status": state.status,
            }
            for state in states
        ],
    }


def plan_view(states: Sequence[State], speed: Speed) -> RenderableType:
    """The same to read, longest first, with the totals and what the hours rest on."""
    table = _table(
        ("run", "model", "bits", "method", ">tokens", ">FLOPs", ">GPU-h", ">GiB", "state")
    )
    for state in states:
        job = state.job
        table.add_row(
            job.name,
            job.model,
            job.bits,
            job.method,
            count_text(job.tokens),
            f"{job.flops:.2e}",
            _hours(speed.gpu_hours(job)),
            f"{job.memory_bytes / 2**30:.3g}",
            _colored(state.status),
        )
    totals = plan_json(states, speed)["totals"]
    table.add_section()
    table.add_row(
        f"{totals['runs']} runs",
        *[""] * 3,
        count_text(totals["tokens"]),
        f"{totals['flops']:.2e}",
        _hours(totals["gpu_hours"]),
    )
    return _with_line(table, f"GPU-hours on {speed.gpu} with {speed.source}")


def status_json(states: Sequence[State]) -> dict[str, Any]:
    """What ``--status --json`` prints."""
    whole = progress(states)
    return {
        "counts": whole.counts,
        "progress": whole.share,
        "seconds_left": whole.seconds_left,
        "runs": [
            {
                **_job_json(state.job),
                **{key: value for key, value in vars(state).items() if key != "job"},
                "log": str(state.job.log_file),
            }
            for state in states
        ],
    }


def status_view(states: Sequence[State], rows: Sequence[State] | None = None) -> RenderableType:
    """A row a run (of all, or of ``rows`` only): how far, the last loss (validation where it is
    done), how long yet; and the sweep as a whole in one line below."""
    table = _table(("run", "state", ">done", ">step", ">loss", ">tokens/s", ">left", "reason"))
    for state in states if rows is None else rows:
        loss = state.val_loss if state.status == "done" else state.train_loss
        table.add_row(
            state.job.name,
            _colored(state.status),
            f"{state.step / state.job.steps:.0%}",
            f"{state.step}/{state.job.steps}",
            "" if loss is None else f"{loss:.4f}",
            "" if state.tokens_per_second is None else count_text(state.tokens_per_second),
            "" if state.seconds_left is None else duration(state.seconds_left),
            state.reason or "",
        )
    return _with_line(table, summary(progress(states)))


def summary(whole: Progress) -> str:
    """``12 done, 2 running, 0 failed, 40 waiting; 31% of the FLOPs; 5h 12m left``"""
    counts = ", ".join(f"{whole.counts[status]} {status}" for status in STATUSES)
    line = f"{counts}; {whole.share:.0%} of the FLOPs"
    if whole.seconds_left:
        line += f"; {duration(whole.seconds_left)} left"
    return line


class Lines:
    """Where no terminal is: a line for each thing that happens."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self._started = jobs, dict[str, float]()

    def _say(self, text: str) -> None:
        log.info("%s", text)

    def began(self, places: str, runs: int) -> None:
        self._say(f"{runs} of {len(self.jobs)} runs to train: {places}")

    def started(self, job: Job, place: str) -> None:
        self._started[job.name] = time.monotonic()
        self._say(f"started {job.name} ({place})")

    def trained_elsewhere(self, job: Job) -> None:
        self._say(f"waiting for {job.name}: another process trains it")

    def ended(self, job: Job, outcome: Outcome) -> None:
        seconds = time.monotonic() - self._started[job.name]
        if outcome.failed:
            self._say(f"failed  {job.name}: {outcome.reason} (log: {job.log_file})")
        elif outcome.exit_code:
            why = f": {outcome.unasked}" if outcome.unasked else ""
            self._say(f"stopped {job.name}{why}; it goes on when the sweep is started again")
        else:
            loss = read_state(job).val_loss
            text = "" if loss is None else f"val_loss {loss:.4f}, "
            self._say(f"done    {job.name}: {text}{duration(seconds)}")

    def found(self, job: Job, status: Status) -> None:
        self._say(f"{status:<7} {job.name}, by another process")

    def stopping(self, runs: int) -> None:
        saving = counted(runs, "run saves", "runs save")
        self._say(f"stopping: {saving} a checkpoint; Ctrl-C again to stop at once")

    def tick(self) -> None:
        """Nothing happens between the lines."""


class LiveTable(Lines):
    """On a terminal: the same lines, above a table of what runs that is drawn every second."""

    def __init__(self, jobs: Sequence[Job], live: Live) -> None:
        super().__init__(jobs)
        self._live, self._drawn = live, 0.0

    def _say(self, text: str) -> None:
        self._live.console.print(text, highlight=False)

    def tick(self) -> None:
        if time.monotonic() - self._drawn >= SECONDS_BETWEEN_FRAMES:
            self._drawn = time.monotonic()
            self._live.update(live_view(read_states(self.jobs)), refresh=True)


@contextmanager
def watcher(jobs: Sequence[Job]) -> Iterator[Lines]:
    """`LiveTable` where standard error is a terminal, `Lines` elsewhere."""
    from rich.live import Live

    errors = literal_console(stderr=True)
    if not errors.is_terminal:
        yield Lines(jobs)
        return
    with Live(console=errors, auto_refresh=False, transient=True) as live:
        yield LiveTable(jobs, live)


def live_view(states: Sequence[State]) -> RenderableType:
    """What runs at the moment, over the line of everything: it fits on a screen."""
    return status_view(states, [state for state in states if state.status == "running"])


def follow(read: Callable[[], list[State]]) -> list[State]:
    """``--status`` on a terminal: the live view of what ``read`` returns, until nothing runs any
    more (or Ctrl-C); returns the last states."""
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, transient=True) as live:
        states = read()
        while any(state.status == "running" for state in states):
            live.update(live_view(states), refresh=True)
            time.sleep(SECONDS_BETWEEN_FRAMES)
            states = read()
    return states


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _job_json(job: Job) -> dict[str, Any]:
    facts = {k: value for k, value in vars(job).items() if k not in ("words", "name", "folder")}
    return {"name": job.name, "folder": str(job.folder), **facts}


def _colored(status: Status) -> Text:
    from rich.text import Text

    return Text(status, style=COLORS[status])


def _table(columns: Sequence[str]) -> Table:
    """A plain rich table; a heading that begins with ``>`` is over numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in columns:
        numbers = heading.startswith(">")
        table.add_column(
            heading.lstrip(">"), justify="right" if numbers else "left", no_wrap=numbers
        )
    return table


def _with_line(table: Table, line: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(table, Text(line, style="italic"))
