"""One request to a server of the OpenAI API, and when its tokens came.

No torch here, and nothing of the server's: it is called as any client would call it.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

SECONDS_WITHOUT_DATA = 300.0
"""A stream that is silent for so long has failed."""


@dataclass(frozen=True)
class Work:
    """What every request asks for: ``output_tokens`` after a prompt of ``prompt_tokens`` random
    token ids below ``vocab_size``, which follow from ``seed`` and the request's number."""

    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    temperature: float
    seed: int

    def body(self, number: int, output_tokens: int | None = None) -> dict[str, Any]:
        """Request ``number`` as the API has it; ``output_tokens`` in place of its own."""
        chosen = random.Random(f"{self.seed} {number}")
        return {
            "prompt": chosen.choices(range(self.vocab_size), k=self.prompt_tokens),
            "max_tokens": output_tokens or self.output_tokens,
            "temperature": self.temperature,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass
class Stream:
    """One answer, by `time.perf_counter`: when it was ``asked`` for, when each event that brought
    text came (``arrivals``; a busy server may put several tokens into one), how many ``tokens`` it
    has, and the ``error`` that ended it instead."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None

    @property
    def seconds_to_first(self) -> float:
        return self.arrivals[0] - self.asked

    @property
    def seconds_per_token(self) -> float:
        """Between its tokens after the first, their mean."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


class Client:
    """Sends requests to the completions of the server at ``url``, any number at a time."""

    def __init__(self, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SECONDS_WITHOUT_DATA)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._url = f"{url}/v1/completions"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, body: dict[str, Any]) -> Stream:
        """Send a request and read its answer to the end; what goes wrong is the stream's
        ``error``."""
        stream = Stream(time.perf_counter())
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    stream.error = f"{response.status}: {(await response.text())[:500]}"
                    return stream
                await _read(response.content, stream)
        except (aiohttp.ClientError, OSError) as error:
            stream.error = f"{type(error).__name__}: {error}"
        return stream


async def _read(content: aiohttp.StreamReader, stream: Stream) -> None:
    """The events of a stream (``data: {…}`` and an empty line each) up to ``[DONE]``."""
    rest = b""
    async for chunk in content.iter_any():
        now = time.perf_counter()
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                return
            _note(json.loads(event.removeprefix(b"data: ")), now, stream)
    stream.error = stream.error or "the stream ended before its [DONE]"


def _note(event: dict[str, Any], now: float, stream: Stream) -> None:
    if "error" in event:
        stream.error = str(event["error"])
    elif any(choice["text"] for choice in event["choices"]):
        stream.arrivals.append(now)
    if event.get("usage"):
        stream.tokens = event["usage"]["completion_tokens"]
