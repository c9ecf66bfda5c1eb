"""A server in a process of its own, for as long as it is measured."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from questtrain.config.serve import KEY_VARIABLE, ServeConfig
from questtrain.errors import UserError
from questtrain.inference.engine.messages import Load, packed_message
from questtrain.process.start import python_command

SECONDS_TO_STOP = 30.0
_URL = re.compile(rb"http://\S+")


@contextmanager
def running_server(config: ServeConfig, load: Load, log: Path) -> Iterator[str]:
    """The URL of a server of what ``load`` makes; what it says goes to the file ``log``. UserError,
    with its last line, where it does not begin to serve."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            python_command("questtrain.bench.serve.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            # With a key it would ask its clients for it.
            env={key: value for key, value in os.environ.items() if key != KEY_VARIABLE},
            start_new_session=True,  # Ctrl-C is ours: the server ends when we have let go of it
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(packed_message((config, load)))
        process.stdin.flush()
        yield _url_in(process.stdout, log)
    finally:
        process.stdin.close()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _url_in(greeting: Iterator[bytes], log: Path) -> str:
    for line in greeting:
        if found := _URL.search(line):
            return found[0].decode()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    raise UserError(f"the server did not start: {lines[-1] if lines else 'it said nothing'}")
