"""One attempt at a run: claim it, train it in a child process, record how that ended.

The claim is a lock on a file, and the child inherits it: it holds as long as the sweeper or its
child lives, whatever kills the other. Two sweepers on one folder never train the same run twice.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from questtrain.errors import WriteFailed
from questtrain.process.signals import STOP_SIGNALS
from questtrain.process.start import python_command
from questtrain.store.files import last_lines, write_json, writing
from questtrain.store.json_file import DamagedJson, read_json
from questtrain.sweep.job import Job

TRAIN = (*python_command("questtrain.cli.main"), "train")

STOPPED = frozenset(code for number in STOP_SIGNALS for code in (-number, 128 + number))
"""Exit codes of a run that was asked to stop: it goes on when the sweep does."""

KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
"""Exit codes of a run that was killed, by hand or because the machine was out of memory."""

MOST_KILLS = 3
"""In a row; after that many the run has failed: what it lacks, it will lack the next time, too."""

CLAIM_TRIES, SECONDS_BETWEEN_TRIES = 3, 0.01
"""A reader of the state holds the lock for an instant; that is no claim."""


@dataclass(frozen=True)
class Outcome:
    """The last attempt at a run. ``exit_code`` is None while it trains, and when whoever would
    have written it was killed; ``kills`` are the last attempts in a row that were; ``extra`` are
    the launcher's own words, kept for the next one."""

    attempts: int
    started: str
    ended: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    extra: tuple[str, ...] = ()
    kills: int = 0

    @property
    def failed(self) -> bool:
        """Not where it was asked to stop, found the disk full, or was killed a few times only."""
        if self.exit_code in (None, 0, WriteFailed.exit_code) or self.exit_code in STOPPED:
            return False
        return self.exit_code not in KILLED or self.kills >= MOST_KILLS

    @property
    def unasked(self) -> str | None:
        """Why it has stopped, where nobody asked it to and it has not failed."""
        if self.failed or self.exit_code not in {*KILLED, WriteFailed.exit_code}:
            return None
        return self.reason

    def after(self, code: int, reason: str | None) -> Outcome:
        """This attempt when it has ended with ``code``."""
        kills = self.kills + 1 if code in KILLED else 0
        if kills:
            so = ", which is a failure" if kills >= MOST_KILLS else ""
            reason = f"{reason} ({kills} of {MOST_KILLS} times{so})"
        return replace(self, ended=_now(), exit_code=code, reason=reason, kills=kills)


def read_outcome(job: Job) -> Outcome | None:
    """What is known of the last attempt; None where there was none, or its file is damaged."""
    try:
        return read_json(job.attempt_file, Outcome)
    except (FileNotFoundError, DamagedJson):
        return None


def claim(job: Job) -> int | None:
    """A descriptor that holds the run for this process (and for a child that inherits it), to be
    closed by the caller; None where another process trains the run."""
    job.claim_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(job.claim_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    for _ in range(CLAIM_TRIES):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            if not _is_locked(job.folder / ".lock"):
                return descriptor
            break  # `questtrain train`, started by hand, is in the run's folder
        time.sleep(SECONDS_BETWEEN_TRIES)
    os.close(descriptor)
    return None


def is_claimed(job: Job) -> bool:
    """Whether some process trains the run at this moment."""
    return _is_locked(job.claim_file) or _is_locked(job.folder / ".lock")


def forget_failure(job: Job, descriptor: int) -> None:
    """Make a failed run, held by the claim ``descriptor``, one that waits; the log stays.

    A diverged run starts over, its folder is removed: from its last checkpoint it would only
    diverge again. Any other failed run keeps its checkpoints and goes on from there.
    """
    if job.run_file.exists():
        shutil.rmtree(job.folder)
    outcome = read_outcome(job)
    if outcome is not None:
        _write(job, replace(outcome, exit_code=None, reason=None, kills=0))
    os.close(descriptor)


class Attempt:
    """A child process that trains one claimed run; `finish` must follow."""

    def __init__(
        self,
        job: Job,
        descriptor: int,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = TRAIN,
    ) -> None:
        """Start ``command`` with the run's words and the launcher's ``extra`` ones.

        Takes over the claim's descriptor. ``environment`` is added to this process's own.
        """
        self.job, self._descriptor = job, descriptor
        before = read_outcome(job) or Outcome(attempts=0, started="")
        attempts = before.attempts + 1
        self.outcome = Outcome(attempts, _now(), extra=tuple(extra), kills=before.kills)
        words = [*command, *job.words, *extra]
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        _write(job, self.outcome)
        with writing(job.log_file), job.log_file.open("a", encoding="utf-8") as log:
            said = shlex.join(["questtrain", "train", *job.words, *extra])
            log.write(f"=== attempt {attempts}, {_now()}: {said}\n")
            log.flush()
            # A session of its own: Ctrl-C on the terminal reaches the child once, through us.
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                pass_fds=(descriptor,),
                start_new_session=True,
            )

    def finish(self) -> Outcome | None:
        """The recorded outcome if the child has ended (the claim is then given up), else None."""
        code = self.process.poll()
        if code is None:
            return None
        reason = None if code == 0 else failure_reason(self.job.log_file, code)
        self.outcome = self.outcome.after(code, reason)
        with suppress(WriteFailed):  # on a full disk it counts as unfinished, which it is
            _write(self.job, self.outcome)
        os.close(self._descriptor)
        return self.outcome


def failure_reason(log_file: Path, code: int) -> str:
    """The run's own last words on why it ended, from its log; or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        advice = ": the machine may be out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {name}{advice}"
    lines = [line for line in last_lines(log_file) if line.strip() and not line.startswith("=== ")]
    said = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    last = (said or lines or [f"exit code {code}"])[-1].strip()
    return last.removeprefix("error: ").removeprefix("stopped: ")


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Whether another process holds the file's lock; nobody holds one that does not exist."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _write(job: Job, outcome: Outcome) -> None:
    write_json(job.attempt_file, asdict(outcome))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
