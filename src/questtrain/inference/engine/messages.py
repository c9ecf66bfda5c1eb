"""What a server and the process of its engine say to each other, and how it lies in a pipe.

A message is pickled, and its length stands before it. Both ends are ours: a server starts its own
engine, and nothing that a client sends is ever unpickled.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from questtrain.inference.engine.requests import Delta, Request

LENGTH = struct.Struct("<Q")


class Steps(Protocol):
    """What a process asks of an engine (`questtrain.inference.engine.engine.Engine`)."""

    context: int
    """Tokens that a request may have, those of its answer included."""
    vocab_size: int

    @property
    def is_idle(self) -> bool: ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def cancel(self, request_id: int) -> None: ...

    def step(self) -> Sequence[Delta]: ...


@dataclass(frozen=True)
class Served:
    """The model that an engine serves: the step it was trained to, the hashes of its weights and of
    what else its answers depend on (`questtrain.inference.engine.fingerprint`), and where its
    tokenizer lies (``bos_id`` began its documents)."""

    name: str
    step: int
    weights_sha256: str
    setup_sha256: str
    tokenizer: str
    bos_id: int
    precision: str


Load = Callable[[], tuple[Steps, Served]]
"""Makes the engine, in its own process: something that can be pickled."""


@dataclass(frozen=True)
class Ready:
    """The engine takes requests."""

    served: Served
    context: int
    vocab_size: int


@dataclass(frozen=True)
class Turn:
    """One step of the engine: when it ``began`` (`time.monotonic`), what came of it, and how many
    requests are in slots and how many wait for one after it."""

    began: float
    deltas: Sequence[Delta]
    running: int
    waiting: int


@dataclass(frozen=True)
class Refused:
    """The engine does not take request ``id``."""

    id: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The engine ends; ``is_user_error`` where what it was asked to load is wrong."""

    reason: str
    is_user_error: bool = False


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for request ``id`` any more."""

    id: int


def packed_message(message: Any) -> bytes:
    """The bytes of one message, its length first."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(content)) + content


def read_message(pipe: BinaryIO) -> Any:
    """The next message; EOFError where the other end is closed."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)
