"""One process trains in a run's folder: it holds a lock there, and says who it is.

The lock (flock on ``.lock``) goes with its process, however that dies. ``.owner.json`` names the
holder, so that a refusal can. Where locks do not reach other hosts (`questtrain.store.lock_scope`)
the owner writes that file anew every `BEAT` seconds, and one of another host that was written less
than `STALE` seconds ago counts as alive: by the times that the file system itself gives two files,
so that the hosts' clocks may differ. That is a rule of thumb and said as a warning.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from questtrain.errors import UserError, WriteFailed
from questtrain.process.kernel import boot_id, pid_namespace
from questtrain.store.files import write_json, writing
from questtrain.store.json_file import DamagedJson, read_json
from questtrain.store.lock_scope import NO_LOCKS, mount_of

LOCK, OWNER = ".lock", ".owner.json"

BEAT, STALE = 20.0, 180.0
"""Seconds. A client of NFS may see times that are a minute old (nfs(5), acregmax)."""

SETTLE = 2.0
"""Seconds after which, of two that claimed at once, the one that wrote first sees the other."""

TRIES, BETWEEN_TRIES = 3, 0.01
"""A sweep that reads the state of its runs holds their locks for an instant."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that trains; ``token`` is this claim's alone.

    ``boot`` is its host's boot, ``started`` its start in that boot's ticks, ``numbers`` the
    namespace of process numbers (all empty where the system does not tell); ``slurm_restarts``
    counts how often Slurm has requeued the job.
    """

    host: str
    pid: int
    since: str
    token: str
    boot: str = ""
    started: str = ""
    numbers: str = ""
    slurm_job: str = ""
    slurm_restarts: int = 0

    @classmethod
    def this(cls) -> Owner:
        """This process, from now on."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
            boot=boot_id(),
            started=_started(os.getpid()),
            numbers=pid_namespace(),
            slurm_job=os.environ.get("SLURM_JOB_ID", ""),
            slurm_restarts=int(restarts) if restarts.isdigit() else 0,
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}, since {self.since}{job}"

    def is_over(self, me: Owner) -> bool | None:
        """Whether it has ended, for certain; None where only time can tell."""
        same_job = self.slurm_job and self.slurm_job == me.slurm_job
        if same_job and self.slurm_restarts < me.slurm_restarts:
            return True  # Slurm ends a job everywhere before it starts it again
        if self.host != me.host or not self.boot:
            return None
        if self.boot != me.boot:
            return True
        return _started(self.pid) != self.started if self.numbers == me.numbers else None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which exists, for this process; UserError, which names the holder, where
    another one does."""
    try:
        with writing(folder / LOCK):
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except WriteFailed:
        raise
    except OSError as error:
        raise UserError(f"run folder {folder} is not writable: {error.strerror}.") from error
    try:
        me, file = Owner.this(), folder / OWNER
        problem = _lock(descriptor, folder)
        if problem:
            log.warning("%s: a second launch is recognised by %s", problem, file)
            _require_no_other(folder, me)
        write_json(file, asdict(me))
        try:
            with _beating(file, me, bool(problem)):
                yield
        finally:
            if _read(file) == me:
                file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> str | None:
    """Lock, or raise UserError; why the lock does not tell of processes on other hosts, if not."""
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(BETWEEN_TRIES)
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return f"{folder} lies on a file system without locks ({error.strerror})"
        mount = mount_of(folder)
        if mount is None or not mount.locks_stay_here:
            return None
        return f"locks on {mount.point} ({mount.kind}) may not reach other hosts"
    owner = _read(folder / OWNER)
    raise UserError(f"another process is training in {folder}{f': {owner}' if owner else ''}.")


def _require_no_other(folder: Path, me: Owner) -> None:
    """UserError where the owner file is of a process that lives, as far as that can be known."""
    other = _read(folder / OWNER)
    over = other is None or other.is_over(me)
    if other is None or over:
        return
    age = _age(folder / OWNER)
    if over is None and age >= STALE:
        log.warning("%s gave no sign for %.0f s: taken to be dead", other, age)
        return
    advice = (
        f" Its last sign came {age:.0f} s ago. If it is dead, the same command is taken"
        f" {STALE:.0f} s after that, or once {folder / OWNER} is deleted."
    )
    raise UserError(
        f"another process is training in {folder}: {other}.{advice if over is None else ''}"
    )


def _age(file: Path) -> float:
    """Seconds since a file was written, by the clock that dates files there."""
    probe = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        probe.write_bytes(b"")
        return max(0.0, probe.stat().st_mtime - file.stat().st_mtime)
    except FileNotFoundError:  # its owner has ended just now
        return STALE
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _beating(file: Path, me: Owner, needed: bool) -> Iterator[None]:
    """Where it is ``needed``, a sign of life every `BEAT` seconds; UserError where another process
    claimed the folder at the same time."""
    if not needed:
        yield
        return
    time.sleep(SETTLE)
    if (other := _read(file)) != me:
        raise UserError(f"another process is training in {file.parent}: {other}.")
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(file, me, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(file: Path, me: Owner, over: threading.Event) -> None:
    while not over.wait(BEAT):
        try:
            if (other := _read(file)) not in (me, None):
                log.error("%s was taken over by %s: stopping", file.parent, other)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            write_json(file, asdict(me))
        except OSError as error:
            log.warning("no sign of life could be written: %s", error)


def _read(file: Path) -> Owner | None:
    try:
        return read_json(file, Owner)
    except (FileNotFoundError, DamagedJson):
        return None


def _started(pid: int) -> str:
    """When a process of this host began, in ticks since the boot (proc_pid_stat(5), field 22);
    empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
