"""The answers to requests that were made together, as they arrive from an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from questtrain.inference.engine.requests import Delta


@dataclass
class Times:
    """When what happened to a request, by `time.monotonic`; 0 for what has not happened yet."""

    asked: float
    admitted: float = 0.0
    first: float = 0.0
    last: float = 0.0
    generated: int = 0
    finished: bool = False

    def note(self, delta: Delta, began: float) -> None:
        """``began``: when the step that gave the delta did."""
        now = time.monotonic()
        self.admitted = self.admitted or max(began, self.asked)
        if delta.generated:
            self.first, self.last = self.first or now, now
            self.generated += delta.generated
        self.finished = self.finished or delta.finish is not None


class Answers:
    """Deltas of the requests ``ids``, for one reader. Where they arrive faster than they are read,
    those of a request are joined into one."""

    def __init__(self, ids: Sequence[int], cancel: Callable[[int], None]) -> None:
        self.times = {index: Times(time.monotonic()) for index in range(len(ids))}
        self._index = {request: index for index, request in enumerate(ids)}
        self._cancel = cancel
        self._arrived: dict[int, Delta] = {}
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def open(self) -> list[int]:
        """The ids of the requests whose last delta has not come."""
        return [request for request, index in self._index.items() if not self.times[index].finished]

    def put(self, delta: Delta, began: float) -> None:
        """A delta of one of the requests, of a step that ``began`` at that time."""
        index = self._index[delta.id]
        self.times[index].note(delta, began)
        before = self._arrived.get(index)
        self._arrived[index] = delta if before is None else joined(before, delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The reader gets ``error``, after what has arrived; what is still open is cancelled. A
        second error changes nothing."""
        self._error = self._error or error
        self.close()
        self._wake()

    def close(self) -> None:
        """Cancel what is still open."""
        for request in self.open:
            self.times[self._index[request]].finished = True
            self._cancel(request)

    async def next(self) -> dict[int, Delta]:
        """What has arrived since the last call, by the request's place; waits until there is
        something, and is empty when nothing more will come. Raises what `fail` was given."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if not self.open:
                return {}
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        arrived, self._arrived = self._arrived, {}
        return arrived

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def joined(before: Delta, after: Delta) -> Delta:
    """Two deltas of a request that follow one another, as one."""
    return replace(
        after,
        text=before.text + after.text,
        generated=before.generated + after.generated,
        tokens=(*before.tokens, *after.tokens),
        prompt=(*before.prompt, *after.prompt),
    )
