"""As much of the Hugging Face hub as a download needs, on loopback."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import pytest


class LocalHub:
    """Serves ``files``: path after the host (``org/model/resolve/main/file``) → content.

    ``requests`` keeps the paths that were asked for; ``refusal`` is the hub's error code for
    everything that is not in ``files``. ``faults``: by path, what goes wrong with the next requests
    for its content, one after the other: an HTTP status, or half of the content and then "cut" (the
    connection ends), "reset" or "stall" (nothing more comes). ``down``: whether every request for
    content, or for a look at it, is answered with 503.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusal = "EntryNotFound"
        self.faults: dict[str, list[str | int]] = {}
        self.down = False
        self.ranges: list[str] = []
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_fault(self, path: str) -> str | int | None:
        """What goes wrong with a request for this content."""
        waiting = self.faults.get(path, [])
        return waiting.pop(0) if waiting else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                path = self.path.lstrip("/").partition("?")[0]
                # After the first look the client asks for the commit instead of main.
                path = path.replace(f"/resolve/{'0' * 40}/", "/resolve/main/")
                hub.requests.append(path)
                content = hub.files.get(path)
                fault = hub.next_fault(path) if with_body and content else None
                status = 503 if hub.down else fault
                if isinstance(status, int):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                asked = self.headers.get("Range") if with_body else None
                self._send_headers(content, asked)
                if with_body and content is not None:
                    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                    self._send_body(content[start:], fault)

            def _send_headers(self, content: bytes | None, asked: str | None) -> None:
                self.send_response(404 if content is None else 206 if asked else 200)
                size = len(content or b"")
                if content is None:
                    self.send_header("X-Error-Code", hub.refusal)
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                if asked:
                    hub.ranges.append(asked)
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                    size -= start
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(size))
                self.end_headers()

            def _send_body(self, content: bytes, fault: object) -> None:
                if fault is None:
                    self.wfile.write(content)
                    return
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if fault == "stall":
                    hub.ended.wait(5)
                if fault == "reset":  # closing without lingering sends RST
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    self.rfile.close()
                self.close_connection = True

            def finish(self) -> None:
                with suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        return Handler


def point_hub_at(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make huggingface_hub, which reads its settings when imported, use ``address``."""
    from huggingface_hub import constants

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
