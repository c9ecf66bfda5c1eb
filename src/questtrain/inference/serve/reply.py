"""The engine's answers on their way to a client: one object of JSON, or server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from questtrain.inference.engine.answers import Answers, joined
from questtrain.inference.engine.requests import Delta, Sampling
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.service import ClientGone, Service, as_api_error, outcome_of


class Form(Protocol):
    """How an endpoint writes answers. A choice is one of ``choices``; see the API's reference."""

    kind: str
    chunk_kind: str
    """``object`` of the whole, and of an event."""

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """The choice of an event."""

    def whole(self, index: int, answer: Delta) -> dict[str, Any]:
        """The choice of the whole; ``answer`` is all its deltas, joined."""


@dataclass
class Reply(Response):
    """Asks the engine when it is called, as the framework does with a response, so that the answer
    is cancelled with the connection."""

    service: Service
    asked: Sequence[tuple[Sequence[int], Sampling]]
    form: Form
    id: str
    prompt_tokens: int
    stream: bool
    include_usage: bool
    created: float = field(default_factory=time.time)
    _generated: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.service.answering(self.asked, receive) as answers:
                if self.stream:
                    outcome = await self._send_events(answers, send)
                else:
                    whole = JSONResponse(await self._whole(answers))
                    await whole(scope, receive, send)
                    outcome = "completed"
        except ClientGone as gone:
            outcome = outcome_of(gone)
        self.service.count(scope["path"], outcome)

    async def _whole(self, answers: Answers) -> dict[str, Any]:
        parts: dict[int, Delta] = {}
        while arrived := await answers.next():
            for index, delta in arrived.items():
                self._check(index, delta)
                parts[index] = joined(parts[index], delta) if index in parts else delta
        choices = [self.form.whole(index, parts[index]) for index in sorted(parts)]
        return {**self._head(self.form.kind), "choices": choices, "usage": self._usage()}

    async def _send_events(self, answers: Answers, send: Send) -> str:
        """What came of it. An error before the first event is raised, so that it has a status."""
        arrived = await answers.next()
        events = self._events(arrived)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while arrived:
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                arrived = await answers.next()
                events = self._events(arrived)
            last, outcome = self._last_events(), "completed"
        except ClientGone:
            raise
        except Exception as error:
            api_error = as_api_error(error)
            last, outcome = _event(api_error.content()), outcome_of(api_error)
        await send({"type": "http.response.body", "body": last})
        return outcome

    def _events(self, arrived: dict[int, Delta]) -> bytes:
        """An event for each choice that goes on; none for tokens without text as yet."""
        events = []
        for index, delta in arrived.items():
            self._check(index, delta)
            if delta.text or delta.finish or delta.tokens or delta.prompt:
                chunk = self._head(self.form.chunk_kind)
                chunk["choices"] = [self.form.chunk(index, delta)]
                if self.include_usage:
                    chunk["usage"] = None
                events.append(_event(chunk))
        return b"".join(events)

    def _last_events(self) -> bytes:
        usage = b""
        if self.include_usage:
            head = self._head(self.form.chunk_kind)
            usage = _event({**head, "choices": [], "usage": self._usage()})
        return usage + b"data: [DONE]\n\n"

    def _check(self, index: int, delta: Delta) -> None:
        """Count; ApiError where the engine could not go on."""
        if delta.finish == "error":
            raise ApiError(500, f"the engine cannot answer this: {delta.error}")
        self._generated[index] = self._generated.get(index, 0) + delta.generated

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": int(self.created),
            "model": self.service.model,
            "system_fingerprint": self.service.fingerprint,
        }

    def _usage(self) -> dict[str, int]:
        generated = sum(self._generated.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


def _event(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"
