"""The process that an engine runs in: what it is told comes by standard input, its answers leave by
what was standard output, and when its parent is gone it ends at once.

It hears no stop signal (its parent starts it with them blocked): what is open when the server is
asked to stop is finished first, even where a cluster sends its signals to every process.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from contextlib import suppress
from typing import Any, BinaryIO

from questtrain.errors import UserError
from questtrain.inference.engine.messages import (
    Cancel,
    Failed,
    Ready,
    Refused,
    Steps,
    Turn,
    packed_message,
    read_message,
)
from questtrain.inference.engine.requests import Request

PIPE_BYTES = 1 << 20
"""Of answers that the engine may be ahead of a server that is busy, before it waits."""


def main() -> int:
    """Load what the first message says, then serve; 1 where an error ended it, whose words are the
    last message."""
    commands = os.fdopen(0, "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    _widen(answers)
    os.dup2(2, 1)  # a library that prints must not print into the messages
    try:
        engine, served = read_message(commands)()
        _send(answers, Ready(served, engine.context, engine.vocab_size))
        _serve(engine, _arriving(commands), answers)
    except UserError as error:
        _send(answers, Failed(str(error), is_user_error=True))
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException as error:
        traceback.print_exc()
        _send(answers, Failed(f"{type(error).__name__}: {error}".splitlines()[0]))
    return 1


def _arriving(commands: BinaryIO) -> queue.SimpleQueue[Any]:
    """The messages of the parent, as a thread reads them; with their end this process ends."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                arrived.put(read_message(commands))
        except (EOFError, OSError):
            os._exit(0)  # whatever the engine is at: nobody is there to hear of it

    threading.Thread(target=read, daemon=True).start()
    return arrived


def _serve(engine: Steps, arrived: queue.SimpleQueue[Any], answers: BinaryIO) -> None:
    """Steps for as long as there is something to do; messages are heeded between two of them."""
    while True:
        if engine.is_idle:
            _heed(arrived.get(), engine, answers)
        while not arrived.empty():
            _heed(arrived.get(), engine, answers)
        began = time.monotonic()
        deltas = engine.step()
        if deltas or engine.is_idle:
            _send(answers, Turn(began, deltas, engine.running, engine.waiting))


def _heed(message: Any, engine: Steps, answers: BinaryIO) -> None:
    match message:
        case Request():
            try:
                engine.add(message)
            except ValueError as error:
                _send(answers, Refused(message.id, str(error)))
        case Cancel():
            engine.cancel(message.id)


def _send(answers: BinaryIO, message: Any) -> None:
    rest = memoryview(packed_message(message))
    while rest:
        rest = rest[answers.write(rest) :]


def _widen(pipe: BinaryIO) -> None:
    """Let a pipe hold `PIPE_BYTES`, where the system can."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
