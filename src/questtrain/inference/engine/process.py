"""An engine in a process of its own, so that JSON and sockets take no time from its steps."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from questtrain.config.serve import KEY_VARIABLE
from questtrain.errors import TrainingStopped, UserError
from questtrain.inference.engine.answers import Answers
from questtrain.inference.engine.messages import (
    LENGTH,
    Cancel,
    Failed,
    Load,
    Ready,
    Refused,
    Turn,
    packed_message,
)
from questtrain.inference.engine.requests import Delta, Request, Sampling
from questtrain.process.signals import stop_signals_blocked
from questtrain.process.start import python_command

SECONDS_TO_END = 5.0
"""What the engine may take to end by itself."""


class EngineDied(TrainingStopped):
    """The engine's process has ended: by an error, which the message tells, or by a signal."""


class EngineProcess:
    """The server's side of an engine: requests are submitted, and their answers arrive as the event
    loop goes on. `died` is done, with the error, when the process has ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.ready: Ready
        self.running = self.waiting = 0
        self.died: asyncio.Future[EngineDied] = asyncio.get_running_loop().create_future()
        self._process = process
        self._answers: dict[int, Answers] = {}
        self._ids = itertools.count()

    @classmethod
    @asynccontextmanager
    async def started(cls, load: Load) -> AsyncIterator[EngineProcess]:
        """The engine that ``load`` makes, ready, for as long as the block lasts. UserError where
        what it loads is wrong, EngineDied where it does not come to life."""
        with stop_signals_blocked():
            process = await asyncio.create_subprocess_exec(
                *python_command("questtrain.inference.engine.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 26,
                start_new_session=True,
                # The engine has no use for the key.
                env={key: value for key, value in os.environ.items() if key != KEY_VARIABLE},
            )
        engine = cls(process)
        reading = None
        try:
            engine._send(load)
            engine.ready = await engine._become_ready()
            reading = asyncio.create_task(engine._deliver())
            yield engine
        finally:
            if reading is not None:
                reading.cancel()
            await engine._end()

    @property
    def open(self) -> int:
        """Requests without their last delta, in slots and waiting."""
        return len(self._answers)

    def submit(self, asked: Sequence[tuple[Sequence[int], Sampling]]) -> Answers:
        """Hand over prompts (token ids, BOS first) that are to be continued, all at once."""
        ids = [next(self._ids) for _ in asked]
        answers = Answers(ids, self.cancel)
        for request, (prompt, sampling) in zip(ids, asked, strict=True):
            self._answers[request] = answers
            self._send(Request(request, tuple(prompt), sampling))
        if self.died.done():
            answers.fail(self.died.result())
        return answers

    def cancel(self, request: int) -> None:
        """Free the request's slot, or its place in the queue, before the next step."""
        if self._answers.pop(request, None) is not None:
            self._send(Cancel(request))

    def fail_all(self, error: Exception) -> None:
        """What is open ends with ``error``."""
        for answers in set(self._answers.values()):
            answers.fail(error)

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        if not self.died.done():
            self._process.stdin.write(packed_message(message))

    async def _read(self) -> Any:
        """The next message; None where the process has closed its end."""
        assert self._process.stdout is not None
        try:
            (length,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
            return pickle.loads(await self._process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def _become_ready(self) -> Ready:
        message = await self._read()
        match message:
            case Ready():
                return message
            case Failed(reason, True):
                raise UserError(reason)
            case _:
                raise await self._why(message)

    async def _why(self, last: Any) -> EngineDied:
        """What the process ended of: its ``last`` message says it, or else its exit code."""
        if isinstance(last, Failed):
            return EngineDied(f"the engine failed: {last.reason}")
        code = await self._process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ": the machine may be out of memory"
        return EngineDied(f"the engine's process {how}.")

    async def _deliver(self) -> None:
        """Hand every delta to who waits for it, until the process ends."""
        message: Any = None
        try:
            while isinstance(message := await self._read(), Turn | Refused):
                self._take(message)
        except Exception as fault:  # of ours: whoever waits must not wait for ever
            message = Failed(f"{type(fault).__name__}: {fault}")
        error = await self._why(message)
        self.died.set_result(error)
        self.fail_all(error)
        self._answers.clear()

    def _take(self, message: Turn | Refused) -> None:
        if isinstance(message, Refused):
            self._put(Delta(message.id, finish="error", error=message.reason), 0.0)
            return
        self.running, self.waiting = message.running, message.waiting
        for delta in message.deltas:
            self._put(delta, message.began)

    def _put(self, delta: Delta, began: float) -> None:
        """Deltas of what was cancelled meanwhile go nowhere."""
        answers = self._answers.get(delta.id)
        if answers is None:
            return
        if delta.finish is not None:
            del self._answers[delta.id]
        answers.put(delta, began)

    async def _end(self) -> None:
        """Close its standard input, with which it ends; kill it where that takes long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), SECONDS_TO_END)
        except asyncio.TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
