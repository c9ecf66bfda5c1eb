"""Makes the pieces a run lacks, in this process or in several."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from questtrain.data.piece import OnTokens, PieceTask, make_piece
from questtrain.data.records import PieceRecord
from questtrain.data.tokenizer import load_tokenizer
from questtrain.errors import UserError
from questtrain.process import available_cores
from questtrain.process.start import python_command


@dataclass
class _Entry:
    task: PieceTask
    tokens: float  # of the train split: measured, or what is expected
    measured: bool
    taken: bool


class Schedule:
    """Hands out the missing pieces in order until the training tokens reach ``limit``.

    ``tasks`` are all pieces of the source in order, ``done`` the records of those that exist,
    ``expected`` the training tokens to expect of a piece before any is measured. Thread-safe.
    """

    def __init__(
        self,
        tasks: Sequence[PieceTask],
        done: Mapping[str, PieceRecord],
        limit: int | None,
        expected: int,
    ) -> None:
        self._limit = limit
        self._expected = float(expected)
        self._lock = threading.Lock()
        self._entries = [_Entry(task, 0.0, measured=False, taken=False) for task in tasks]
        for entry in self._entries:
            if entry.task.name in done:
                entry.taken = True
                self._measure(entry, done[entry.task.name])

    def count_needed(self) -> int:
        """How many pieces are still to be made, as far as is known now."""
        with self._lock:
            return len(self._needed())

    def next(self) -> PieceTask | None:
        """The next piece to make, or None when no further one is needed as far as is known now."""
        with self._lock:
            needed = self._needed()
            if not needed:
                return None
            needed[0].taken = True
            return needed[0].task

    def finish(self, task: PieceTask, record: PieceRecord) -> None:
        """Note that ``task`` is made."""
        with self._lock:
            self._measure(next(e for e in self._entries if e.task is task), record)

    def _measure(self, entry: _Entry, record: PieceRecord) -> None:
        entry.tokens = float(record.train_tokens)
        entry.measured = True

    def _needed(self) -> list[_Entry]:
        measured = [e.tokens for e in self._entries if e.measured and e.task.split == "train"]
        mean = sum(measured) / len(measured) if measured else self._expected
        needed = []
        total = 0.0
        for entry in self._entries:
            if entry.task.split == "train":
                if self._limit is not None and total >= self._limit:
                    break
                total += entry.tokens if entry.measured else mean
            if not entry.taken:
                needed.append(entry)
        return needed


def make_pieces(schedule: Schedule, workers: int, on_tokens: OnTokens) -> None:
    """Make what ``schedule`` hands out, in ``workers`` processes (1: in this one)."""
    if workers > 1:
        _make_in_processes(schedule, workers, on_tokens)
        return
    while (task := schedule.next()) is not None:
        tokenizer = load_tokenizer(task.tokenizer, task.tokenizer_name, task.bos_id)
        schedule.finish(task, make_piece(task, tokenizer, on_tokens))


def _make_in_processes(schedule: Schedule, workers: int, on_tokens: OnTokens) -> None:
    events: queue.Queue[int | Exception | None] = queue.Queue()
    threads_each = max(1, available_cores() // workers)  # a large file is a piece by itself
    processes: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []
    try:
        for _ in range(workers):
            processes.append(_start_worker(threads_each))
            drive = (processes[-1], schedule, events)
            threads.append(threading.Thread(target=_drive, args=drive, daemon=True))
            threads[-1].start()
        running = workers
        while running:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                on_tokens(event)
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.communicate()


def _start_worker(threads: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        # All workers together get the cores; more threads would only fight.
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        python_command("questtrain.data.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def _drive(
    process: subprocess.Popen[str],
    schedule: Schedule,
    events: queue.Queue[int | Exception | None],
) -> None:
    """Feed one worker until the schedule is empty; None in ``events`` says so."""
    try:
        while (task := schedule.next()) is not None:
            schedule.finish(task, _make_remotely(process, task, events))
        events.put(None)
    except Exception as error:
        events.put(error)


def _make_remotely(
    process: subprocess.Popen[str],
    task: PieceTask,
    events: queue.Queue[int | Exception | None],
) -> PieceRecord:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(task)) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise _died(process, task) from None
    for line in process.stdout:
        message = json.loads(line)
        if "tokens" in message:
            events.put(message["tokens"])
        elif "record" in message:
            return PieceRecord.of(message["record"])
        elif "error" in message:
            raise UserError(message["error"])
        else:
            raise RuntimeError(f"a data worker failed on {task.name}:\n{message['crash']}")
    raise _died(process, task)


def _died(process: subprocess.Popen[str], task: PieceTask) -> UserError:
    return UserError(
        f"a process that made {task.name} ended with code {process.wait()} (out of memory?). "
        "Finished shards are kept: run the command again, with a smaller data.num_workers"
    )
