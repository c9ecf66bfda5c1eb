"""An engine without a model, of the real one's interface: it spells ``seed`` and counts up, a
character a step. With it, speed, queues and ends of a server are what a test wants them to be."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import dataclass

from questtrain.errors import UserError
from questtrain.inference.engine.messages import Served
from questtrain.inference.engine.requests import Alternative, Delta, Request, TokenInfo


def letter(request: Request, place: int) -> str:
    """The character in a place of a request's answer."""
    return f"{request.sampling.seed}:{' '.join(map(str, range(place + 1)))}"[place]


def info(token: int, text: str) -> TokenInfo:
    return TokenInfo(token, text, text.encode(), -0.5, (Alternative(1, "x", -1.0, b"x"),))


class FakeEngine:
    """``max_batch_size`` answers at a time, a step in ``seconds``. A prompt that holds token 13
    kills the process, 14 is an error of the engine's, 15 one of the request's own."""

    vocab_size = 512

    def __init__(self, context: int, max_batch_size: int, seconds: float) -> None:
        self.context, self.max_batch_size, self.seconds = context, max_batch_size, seconds
        self.slots: dict[int, tuple[Request, int]] = {}
        self.queue: deque[Request] = deque()

    @property
    def running(self) -> int:
        return len(self.slots)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def is_idle(self) -> bool:
        return not self.slots and not self.queue

    def add(self, request: Request) -> None:
        self.queue.append(request)

    def cancel(self, request_id: int) -> None:
        self.slots.pop(request_id, None)
        self.queue = deque(each for each in self.queue if each.id != request_id)

    def step(self) -> list[Delta]:
        time.sleep(self.seconds)
        while self.queue and len(self.slots) < self.max_batch_size:
            request = self.queue.popleft()
            self.slots[request.id] = (request, 0)
        return [self._next(number) for number in list(self.slots)]

    def _next(self, number: int) -> Delta:
        request, place = self.slots[number]
        if 13 in request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if 14 in request.prompt:
            raise RuntimeError("the device is gone\nand more")
        if 15 in request.prompt:
            del self.slots[number]
            return Delta(number, finish="error", error="too little memory")
        sampling = request.sampling
        text = letter(request, place) if sampling.max_tokens else ""
        last = place + 1 >= sampling.max_tokens
        self.slots[number] = (request, place + 1)
        if last:
            del self.slots[number]
        told = sampling.logprobs is not None
        prompt = tuple(info(token, "p") for token in request.prompt)
        return Delta(
            number,
            text,
            len(text),
            (info(place, text),) if told and text else (),
            prompt if sampling.prompt_logprobs and place == 0 else (),
            "length" if last else None,
        )


@dataclass(frozen=True)
class FakeModel:
    """Makes one, for a server."""

    tokenizer: str
    context: int = 64
    max_batch_size: int = 4
    seconds: float = 0.01
    fault: str | None = None

    def __call__(self) -> tuple[FakeEngine, Served]:
        if self.fault is not None:
            raise UserError(self.fault)
        engine = FakeEngine(self.context, self.max_batch_size, self.seconds)
        return engine, Served("fake", 7, "ab" * 32, "cd" * 32, self.tokenizer, 0, "w4a4")
