"""What a request passes before anything reads it: is it meant for this server, may it ask, is it
small enough.

A page of another origin must not use a server on loopback through the browser of who runs it. A
name that an attacker makes resolve to 127.0.0.1 (DNS rebinding) is none of `Hosts`; a page's own
origin is named in ``Origin``; and no answer allows another origin to read it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from questtrain.config.ranges import shown
from questtrain.inference.serve.errors import ApiError

OPEN_PATHS = ("/", "/health")
"""What needs no key: the page has a field for it, and who watches a server need not have one."""

SECONDS_OF_A_BODY = 30.0
"""What a client may take to send a request."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Hosts:
    """The names by which a server may be called; all, where none are given and its address is none
    of loopback: a key is needed there."""

    def __init__(self, address: str, host: str, allowed: Sequence[str]) -> None:
        self.is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        own = ("localhost", "127.0.0.1", "::1", host) if self.is_loopback else ()
        self.allowed = {name.lower() for name in (*own, *allowed)}
        self.any = not self.is_loopback and not allowed

    def check(self, headers: Headers) -> None:
        """ApiError for a name that is none of ours, and for a page of another origin."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.any and _name(f"//{host}") not in self.allowed:
            raise ApiError(
                403,
                f"this server is not called {shown(host)!r}; allowed_hosts=[…] gives it names.",
                code="host_not_allowed",
            )
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, "pages of other origins may not ask.", code="origin_not_allowed")


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


class Guard:
    """ASGI middleware. ``key`` None: nobody needs one."""

    def __init__(self, app: ASGIApp, hosts: Hosts, key: str | None, max_bytes: int) -> None:
        self.app, self.hosts, self.max_bytes = app, hosts, max_bytes
        self.key = None if key is None else _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            headers = Headers(scope=scope)
            self.hosts.check(headers)
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
            _check_type(body, headers)
        except ApiError as error:
            return await error.response()(scope, receive, with_headers)
        await self.app(scope, _replay(body, receive), with_headers)

    def _check_key(self, path: str, headers: Headers) -> None:
        if self.key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip()), self.key)
        if scheme.lower() != "bearer" or not right:
            what = "is wrong" if given else "is missing: Authorization: Bearer KEY"
            advice = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, f"the API key {what}.", None, "invalid_api_key", advice)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body; ApiError where it is too long, or too long on its way."""
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > self.max_bytes:
            raise self._too_long()
        try:
            return await asyncio.wait_for(self._read(receive), SECONDS_OF_A_BODY)
        except asyncio.TimeoutError:
            raise ApiError(408, "the request did not arrive in time.") from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                raise self._too_long()
            if not message.get("more_body"):
                break
        return bytes(body)

    def _too_long(self) -> ApiError:
        return ApiError(
            413,
            f"a request may have {self.max_bytes} bytes (max_request_bytes of the server).",
            code="request_too_large",
            headers={"Connection": "close"},
        )


def _check_type(body: bytes, headers: Headers) -> None:
    """ApiError for what is not said to be JSON: a browser lets a page of any origin send that,
    without asking the server first."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != "application/json":
        raise ApiError(415, "the body must be JSON, with Content-Type: application/json.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the app receives: the body that was read, then what else the client does."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _digest(key: str) -> bytes:
    """Of equal length whatever the key's, so that comparing them takes the same time."""
    return hashlib.sha256(key.encode()).digest()
