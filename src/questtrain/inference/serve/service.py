"""What all requests of a server share, and what becomes of one between its arrival and its end."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from questtrain.config.serve import ServeConfig
from questtrain.data import load_tokenizer
from questtrain.errors import counted
from questtrain.inference.engine.answers import Answers
from questtrain.inference.engine.process import EngineDied, EngineProcess
from questtrain.inference.engine.requests import Sampling
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.metrics import Metrics
from questtrain.inference.serve.prompts import Encoder
from questtrain.inference.serve.templates import ChatTemplate

Receive = Callable[[], Awaitable[Any]]

ENDPOINTS = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
"""What the metrics count, by its path."""

LONGEST_RETRY = 60
"""Seconds that a client is told to wait at the most."""


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class Service:
    """The engine and what a request needs besides: the tokenizer, limits, names, counters."""

    def __init__(self, engine: EngineProcess, config: ServeConfig, key_needed: bool) -> None:
        """UserError for a chat template that cannot be read."""
        self.key_needed = key_needed
        served = engine.ready.served
        self.engine, self.config, self.metrics = engine, config, Metrics()
        self.model = config.model_name or served.name
        self.created = int(time.time())
        weights, setup = served.weights_sha256[:12], served.setup_sha256[:6]
        self.fingerprint = f"step{served.step}-{weights}-{setup}"
        tokenizer = load_tokenizer(served.tokenizer, bos=served.bos_id)
        self.encoder = Encoder(tokenizer, engine.ready.vocab_size, engine.ready.context)
        self.template = ChatTemplate.find(tokenizer, config.chat_template)
        self.draining = False
        self._mean_seconds = 1.0

    def check_model(self, name: str | None) -> None:
        """ApiError where another model is asked for; none is asked for by null."""
        if name not in (None, self.model):
            raise ApiError(
                404,
                f"there is no model {name[:200]!r} here, only {self.model!r}.",
                "model",
                "model_not_found",
            )

    @asynccontextmanager
    async def answering(
        self, asked: Sequence[tuple[Sequence[int], Sampling]], receive: Receive
    ) -> AsyncIterator[Answers]:
        """The engine's answers to what a request asks, for as long as the block lasts. They end
        with an error where the client goes, time is up, or the engine dies; what is open after the
        block is cancelled, and its slots are free before the next step."""
        self.check_room(len(asked))
        self.metrics.prompt_tokens.inc(sum(len(prompt) for prompt, _ in asked))
        answers = self.engine.submit(asked)
        late = ApiError(504, f"it took longer than {self.config.timeout:g} s.", code="timeout")
        timer = asyncio.get_running_loop().call_later(self.config.timeout, answers.fail, late)
        watch = asyncio.create_task(_watch(receive, answers))
        try:
            yield answers
        finally:
            timer.cancel()
            watch.cancel()
            answers.close()
            for times in answers.times.values():
                self.metrics.note_answer(times)
                seconds = max(times.last - times.asked, 0)
                self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def check_room(self, answers: int) -> None:
        """ApiError where so many more cannot be taken on now, or never."""
        most = self.config.max_batch_size + self.config.max_queue
        if answers > most:
            raise ApiError(400, f"n times the prompts are {answers}, and {most} the most.", "n")
        if self.draining:
            raise ApiError(503, "the server is ending.", code="draining", headers=_after(1))
        open_now = self.engine.open
        if open_now + answers > most:
            rounds = max(1, open_now + answers - most) / self.config.max_batch_size
            headers = _after(math.ceil(rounds * self._mean_seconds))
            busy = f"{counted(open_now, 'answer is', 'answers are')} under way."
            raise ApiError(429, busy, None, "queue_full", headers)

    def count(self, path: str, outcome: str) -> None:
        """One more request of an endpoint that came to this."""
        if path in ENDPOINTS:
            self.metrics.requests.labels(ENDPOINTS[path], outcome).inc()


def outcome_of(error: BaseException) -> str:
    """What a request's end is called in the metrics."""
    if isinstance(error, ApiError):
        names = {429: "queue_full", 503: "draining", 504: "timeout"}
        return names.get(error.status, "refused" if error.status < 500 else "failed")
    return "cancelled" if isinstance(error, ClientGone | asyncio.CancelledError) else "failed"


def as_api_error(error: Exception) -> ApiError:
    """What the client is told."""
    if isinstance(error, EngineDied):
        return ApiError(500, str(error), code="engine_died")
    return error if isinstance(error, ApiError) else ApiError(500, "the server made an error.")


def seed_of(asked: int | None) -> int:
    """The seed that was asked for, or a random one."""
    return secrets.randbits(63) if asked is None else asked


def _after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY))}


async def _watch(receive: Receive, answers: Answers) -> None:
    """Notice that the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.fail(ClientGone())
