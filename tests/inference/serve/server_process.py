"""Servers in processes of their own, started on a free port of loopback and ended by their id."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

ROOT = Path(__file__).parents[3]
SECONDS = 120
"""What anything may take on a busy machine."""


class Server:
    """A server that takes requests at ``url``."""

    def __init__(self, command: list[str], key: str | None = None) -> None:
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment = {**os.environ, **own}
        if key is not None:
            environment["QUESTTRAIN_API_KEY"] = key
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.key = key

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"serving .* at (http://\S+?)(,|$)", line)
        assert found, f"{line!r}: {self.process.communicate(timeout=SECONDS)}"
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=SECONDS)
        # What is printed later must not fill a pipe that nobody reads.
        self.lines: list[str] = []
        self.errors: list[str] = []
        pipes = ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        self.readers = [
            threading.Thread(target=lines.extend, args=(pipe,), daemon=True)
            for pipe, lines in pipes
        ]
        for reader in self.readers:
            reader.start()

    def client(self, **settings: Any) -> OpenAI:
        key = self.key or "none"
        settings = {"max_retries": 0, "timeout": SECONDS, **settings}
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **settings)

    def post(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.http.get("/health").json()
        return health

    def metric(self, line: str) -> float:
        """What `/metrics` says in the first line that begins so; 0 without one."""
        text = self.http.get("/metrics", headers={"Authorization": f"Bearer {self.key}"}).text
        rows = [row for row in text.splitlines() if row.startswith(line)]
        return float(rows[0].split()[-1]) if rows else 0.0

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """The exit code, when it has ended and all that it printed is read."""
        code = self.process.wait(SECONDS)
        for reader in self.readers:
            reader.join(SECONDS)
        return code


def fake_command(tokenizer: Path, **settings: Any) -> list[str]:
    """The words that start a server of the fake engine."""
    module = "tests.inference.serve.fake_server"
    return [sys.executable, "-m", module, json.dumps({"tokenizer": str(tokenizer), **settings})]


@contextmanager
def running(command: list[str], key: str | None = None) -> Iterator[Server]:
    """Of an own process, which does not outlive the block."""
    server = Server(command, key)
    try:
        server.wait_until_ready()
        with server.http:
            yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(30)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        for pipe in (server.process.stdout, server.process.stderr):
            assert pipe is not None
            pipe.close()
