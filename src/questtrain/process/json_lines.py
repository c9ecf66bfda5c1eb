"""Small messages between the ranks of a run: a JSON object a line, on sockets that never block."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

LONGEST = 1 << 16
"""Bytes of a line: what sends more is none of ours."""


class JsonLines:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.has_ended = False
        self._rest = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """A message to a peer that is gone, or that has read nothing for hours, is dropped: its
        silence is noticed anyway."""
        with suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """What has come whole. ``has_ended`` from then on where the other end is closed, or sends
        what is no message."""
        try:
            data = self.socket.recv(LONGEST)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.has_ended = not data or len(self._rest) > LONGEST
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.has_ended = True
            return []
        return messages

    def close(self) -> None:
        self.socket.close()
