"""A tokenizer, and one server of the fake engine for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.serve.server_process import Server, fake_command, running


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str]) -> Path:
    return Path(corpus[2].partition("=")[2])


@pytest.fixture(scope="session")
def fake(tokenizer: Path) -> Iterator[Server]:
    """Two answers at a time, two that wait, and a context of 64."""
    command = fake_command(
        tokenizer, max_batch_size=2, max_queue=6, max_request_bytes=20_000, timeout=3, seconds=0.004
    )
    with running(command) as server:
        yield server
