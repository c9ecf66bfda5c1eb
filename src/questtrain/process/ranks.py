"""One run by several processes of this machine, the ranks of one torch.distributed world.

Their parent starts them together, passes on what asks it to stop, and ends those that wait for a
dead one. Each is handed its task as the first line of its standard input, which stays open as long
as the parent lives: whatever ends the parent, its ranks then stop as on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from questtrain.errors import TrainingStopped
from questtrain.process.signals import (
    STOP_SIGNALS,
    StopRequests,
    on_stop_signals,
    stop_signals_blocked,
)

SECONDS_BETWEEN_LOOKS = 0.1

SECONDS_TO_END = 30.0
"""How long a rank may go on when another has ended with an error, as under torchrun."""

HAS_PARENT = "QUESTTRAIN_RANK_HAS_PARENT"
"""In a rank's environment: if another one dies, it ends without a word, with `PEER_LOST`."""

PEER_LOST = 75
"""Sysexits.h's EX_TEMPFAIL, from a rank to its parent."""


class RankDied(TrainingStopped):
    """A rank, process ``pid``, was ended by a signal that nobody sent through the parent, or lost
    another one."""

    def __init__(self, rank: int, size: int, pid: int, code: int) -> None:
        how = "lost its connection to another"
        if code < 0:
            how, self.exit_code = f"was killed by {signal.Signals(-code).name}", 128 - code
        if code == -signal.SIGKILL:
            how += ": the machine may be out of memory"
        where = f"(host {socket.gethostname()}, pid {pid})"
        super().__init__(
            f"rank {rank} of {size} {where} {how}. The same command continues from the last"
            " checkpoint."
        )


def run_ranks(command: Sequence[str], size: int, task: str) -> int:
    """Run ``command`` as ``size`` ranks that `read_task`; returns the exit code of the first that
    ended with an error, or 0. RankDied where it said nothing."""
    asked = StopRequests()
    with on_stop_signals(asked.note), _ranks(command, size, task) as ranks:
        rank, code = _first_error(ranks, asked)
        pid = ranks[rank].pid
    if code and asked.urgency > 2:
        return 128 + asked.number
    if code < 0 or code == PEER_LOST:
        raise RankDied(rank, size, pid, code)
    return code


@contextmanager
def _ranks(command: Sequence[str], size: int, task: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, started; none of them outlives the block."""
    shared = {
        "OMP_NUM_THREADS": "1",  # as torchrun sets it: all ranks' threads together are the cores'
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        HAS_PARENT: "1",
    }
    ranks: list[subprocess.Popen[str]] = []
    try:
        with stop_signals_blocked():
            for rank in map(str, range(size)):
                own = {"RANK": rank, "LOCAL_RANK": rank}
                # A session of its own: Ctrl-C on the terminal reaches a rank once, through us.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    env=shared | own,
                    start_new_session=True,
                    text=True,
                )
                ranks.append(process)
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it has died: its exit code says of what
                    process.stdin.write(f"{task}\n")
                    process.stdin.flush()
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def _first_error(ranks: Sequence[subprocess.Popen[str]], asked: StopRequests) -> tuple[int, int]:
    """The rank that ended with an error first, and its code (0: none), when all have ended."""
    first, passed_on, deadline = (0, 0), 0, float("inf")
    while True:
        running = [process for process in ranks if process.poll() is None]
        errors = [(rank, p.returncode) for rank, p in enumerate(ranks) if p.returncode]
        if errors and not first[1]:
            first = min(errors, key=lambda error: (error[1] > 0, error[1] == PEER_LOST))
            deadline = time.monotonic() + SECONDS_TO_END
        if not running:
            return first
        if asked.urgency > passed_on:
            passed_on += 1
            number = {1: asked.number, 2: signal.SIGINT}.get(passed_on, signal.SIGKILL)
            for process in running:
                process.send_signal(number)
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def read_task() -> str:
    """What this rank is to do; from here on it hears stop signals, and its parent's end as one."""
    with open(0, "rb", buffering=0, closefd=False) as parent:
        task = parent.readline().decode()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return task


def _stop_with_parent() -> None:
    os.read(0, 1)  # nothing more is written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
