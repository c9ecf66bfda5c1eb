"""What the HTTP side of `questtrain serve` can carry, with an engine that costs nothing.

    python benchmarks/serve_front.py [OUTPUT.json] [--streams N] [--steps N …] [--seconds S]

64 streams each get a character a step, at so many steps a second (0: as many as the pipe takes).
Told: tokens and events a second that arrived, and the time that the server's process took of a core
(its engine has a process of its own), over all and for each event. Where the server is behind,
several tokens share an event, so events may be fewer than tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import BPE

from questtrain.bench.environment import environment
from questtrain.config.loading import config_from_mapping
from questtrain.config.serve import ServeConfig
from questtrain.inference.engine.messages import Served
from questtrain.inference.engine.requests import Delta, Request
from questtrain.inference.serve.server import serve
from questtrain.store.files import write_json

CONTEXT = 1_000_000


class Letters:
    """An engine that gives each request the same letter in every step."""

    context, vocab_size = CONTEXT, 512
    waiting = 0

    def __init__(self, steps: float) -> None:
        self.pause = 1 / steps if steps else 0
        self.due = time.monotonic()
        self.requests: dict[int, Delta] = {}

    @property
    def running(self) -> int:
        return len(self.requests)

    @property
    def is_idle(self) -> bool:
        return not self.requests

    def add(self, request: Request) -> None:
        self.requests[request.id] = Delta(request.id, "a", 1)

    def cancel(self, request_id: int) -> None:
        self.requests.pop(request_id, None)

    def step(self) -> Sequence[Delta]:
        self.due = max(self.due + self.pause, time.monotonic() - self.pause)
        time.sleep(max(self.due - time.monotonic(), 0))
        return list(self.requests.values())


@dataclass(frozen=True)
class Model:
    """Makes the engine in its process."""

    steps: float
    tokenizer: str

    def __call__(self) -> tuple[Letters, Served]:
        return Letters(self.steps), Served(
            "letters", 0, "0" * 64, "0" * 64, self.tokenizer, 0, "bf16"
        )


def serve_letters(steps: float) -> None:
    """Until this process is ended."""
    from serve_front import Model  # as the engine's process imports it

    file = Path(os.environ["SERVE_FRONT_TOKENIZER"])
    defaults = yaml.safe_load((resources.files("questtrain.conf") / "serve.yaml").read_text())
    settings = {**defaults, "run": "letters", "port": 0, "max_batch_size": 4096}
    serve(config_from_mapping(ServeConfig, settings), Model(steps, str(file)))


async def read(port: int, counts: dict[str, int]) -> None:
    """Count what one stream brings, in raw bytes: the client is to cost little."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": [0], "max_tokens": CONTEXT - 1, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    while data := await reader.read(1 << 16):
        counts["events"] += data.count(b"data: ")
        for found in re.findall(rb'"text":"(a+)"', data):
            counts["tokens"] += len(found)


def processor_seconds(process: int) -> float:
    """That a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: subprocess.Popen[str], streams: int, seconds: float) -> dict[str, float]:
    assert server.stdout is not None
    port = int(server.stdout.readline().rpartition(":")[2])
    counts = {"events": 0, "tokens": 0}
    readers = [asyncio.create_task(read(port, counts)) for _ in range(streams)]
    await asyncio.sleep(1.0)
    before, busy, began = dict(counts), processor_seconds(server.pid), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    busy = processor_seconds(server.pid) - busy
    for reader in readers:
        reader.cancel()
    events, tokens = (counts[key] - before[key] for key in ("events", "tokens"))
    return {
        "tokens_per_second": tokens / took,
        "events_per_second": events / took,
        "core": busy / took,
        "microseconds_per_event": busy / events * 1e6,
        "microseconds_per_token": busy / tokens * 1e6,
    }


def case(streams: int, steps: float, seconds: float) -> dict[str, Any]:
    """Of one rate, with a server of its own."""
    command = [sys.executable, __file__, "--serve", str(steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            told = asyncio.run(measure(server, streams, seconds))
        finally:
            server.kill()
    return {"streams": streams, "steps_per_second": steps, **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--steps", type=float, nargs="+", default=[50, 200, 0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--serve", type=float)
    words = parser.parse_args()
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = str(here)
    if words.serve is not None:
        serve_letters(words.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        tokenizer = Tokenizer(BPE({"<s>": 0, "a": 1}, []))
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.save(str(file))
        os.environ["SERVE_FRONT_TOKENIZER"] = str(file)
        rows = [case(words.streams, steps, words.seconds) for steps in words.steps]
    for row in rows:
        print({key: round(value, 2) for key, value in row.items()})
    if words.output:
        command = shlex.join(["python", *sys.argv])
        about = environment(torch.device("cpu"), command)
        write_json(Path(words.output), {"environment": about, "rows": rows})


if __name__ == "__main__":
    main()
