"""Makes the pieces a run lacks, in this process or in several."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from questtrain.data.piece import OnTokens, PieceTask, make_piece
from questtrain.data.records import PieceRecord
from questtrain.data.tokenizer import load_tokenizer
from questtrain.errors import PreparationStopped, UserError
from questtrain.process import available_cores
from questtrain.process.start import python_command


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
        self._tasks, self._limit, self._expected = tasks, limit, expected
        self._lock = threading.Lock()
        self._taken = set(done)
        self._tokens = {name: record.train_tokens for name, record in done.items()}  # measured

    def needed(self) -> list[PieceTask]:
        """The pieces that are still to be made, as far as is known now."""
        with self._lock:
            return self._needed()

    def next(self) -> PieceTask | None:
        """The next piece to make, or None when no further one is needed as far as is known now."""
        with self._lock:
            needed = self._needed()
            if not needed:
                return None
            self._taken.add(needed[0].name)
            return needed[0]

    def finish(self, task: PieceTask, record: PieceRecord) -> None:
        """Note that ``task`` is made."""
        with self._lock:
            self._tokens[task.name] = record.train_tokens

    def _needed(self) -> list[PieceTask]:
        train = [task.name for task in self._tasks if task.split == "train"]
        measured = [self._tokens[name] for name in train if name in self._tokens]
        mean = sum(measured) / len(measured) if measured else self._expected
        needed = []
        total = 0.0
        for task in self._tasks:
            if task.split == "train":
                if self._limit is not None and total >= self._limit:
                    break
                total += self._tokens.get(task.name, mean)
            if task.name not in self._taken:
                needed.append(task)
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
    with contextlib.suppress(BrokenPipeError):  # it has died, and says nothing
        process.stdin.write(json.dumps(asdict(task)) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if "tokens" in message:
            events.put(message["tokens"])
        elif "record" in message:
            return PieceRecord.of(message["record"])
        elif "error" in message:
            raise UserError(message["error"])
        elif "stopped" in message:
            raise PreparationStopped(message["stopped"])
        else:
            raise RuntimeError(f"a data worker failed on {task.name}:\n{message['crash']}")
    raise UserError(
        f"a process that made {task.name} ended with code {process.wait()} (out of memory?). "
        "Finished shards are kept: run the command again, with a smaller data.num_workers"
    )
