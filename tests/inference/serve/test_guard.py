"""What a request passes before anything reads it, in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from questtrain.inference.serve import guard
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.guard import Guard, Hosts


def ask(
    guarded: Guard, chunks: list[bytes], headers: dict[str, str], stalls: bool = False
) -> tuple[int, bytes]:
    """The status, and what the application behind the guard read."""
    sent: list[dict[str, Any]] = []
    parts = list(chunks)

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.sleep(60)
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts) or stalls}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": raw}
    asyncio.run(guarded(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def guarded(max_bytes: int = 8) -> Guard:
    return Guard(echo, Hosts("127.0.0.1", "localhost", []), None, max_bytes)


def test_a_body_is_read_whole_and_up_to_its_limit() -> None:
    """Whatever Content-Length says, or does not."""
    host = {"host": "localhost", "content-type": "application/json"}
    assert ask(guarded(), [b"1234", b"5678"], host) == (200, b"12345678")
    assert ask(guarded(), [b"1234", b"56789"], host)[0] == 413
    assert ask(guarded(), [b"1"], host | {"content-length": "9"})[0] == 413
    assert ask(guarded(), [b"1"], host | {"content-length": "9" * 5000})[0] == 413
    assert ask(guarded(), [b"1"], host | {"content-length": "-1"})[0] == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("text/plain;application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        (None, 415),
    ],
)
def test_what_a_page_may_send_without_asking_is_refused(kind: str | None, status: int) -> None:
    """The content types of forms, and none."""
    headers = {"host": "localhost"} | ({} if kind is None else {"content-type": kind})
    assert ask(guarded(), [b"{}"], headers)[0] == status
    assert ask(guarded(), [b""], headers)[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS_OF_A_BODY", 0.05)
    assert ask(guarded(), [b"1"], {"host": "localhost"}, stalls=True)[0] == 408


@pytest.mark.parametrize(
    ("address", "host", "allowed", "name", "served"),
    [
        ("127.0.0.1", "127.0.0.1", [], "localhost:80", True),
        ("127.0.0.1", "my-laptop", [], "my-laptop", True),
        ("127.0.0.1", "127.0.0.1", [], "my-laptop", False),
        ("127.0.0.1", "127.0.0.1", ["models.example"], "Models.Example", True),
        ("::1", "::1", [], "[::1]:8000", True),
        ("0.0.0.0", "0.0.0.0", [], "anything.example", True),
        ("0.0.0.0", "0.0.0.0", ["models.example"], "anything.example", False),
        ("0.0.0.0", "0.0.0.0", ["models.example"], "models.example:8000", True),
    ],
)
def test_names(address: str, host: str, allowed: list[str], name: str, served: bool) -> None:
    hosts = Hosts(address, host, allowed)
    if served:
        hosts.check(Headers({"host": name}))
        hosts.check(Headers({"host": name, "origin": f"https://{name}"}))
    else:
        with pytest.raises(ApiError, match="is not called"):
            hosts.check(Headers({"host": name}))
