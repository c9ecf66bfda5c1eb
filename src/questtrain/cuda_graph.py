"""Work on a GPU that is recorded once as a CUDA graph, which the host then issues at once.

Launching kernels one by one takes a host longer than small kernels take. A graph holds them with
the addresses that they read and write: inputs and results are the same memory at each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class GraphedCall(Generic[T]):
    """``work`` on a ``device``: as it is in the first ``warm_calls`` calls, which compile and fill
    what libraries keep, then captured, then replayed; on a CPU always as it is.

    It is captured anew, after as many warm calls, when the ``addresses`` that it reads have
    changed. What it returns is from its capture on overwritten by the next call. What the graph
    needs of the device's memory it keeps until `forget`.
    """

    def __init__(
        self,
        work: Callable[[], T],
        device: torch.device,
        warm_calls: int,
        addresses: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._work, self._device, self._addresses = work, device, addresses
        self._warm_calls, self._calls = warm_calls, 0
        self._captured: tuple[torch.cuda.CUDAGraph, T, list[int]] | None = None

    @property
    def is_captured(self) -> bool:
        return self._captured is not None

    def forget(self) -> None:
        """Free the graph's memory; the next call captures anew."""
        self._captured = None

    def __call__(self) -> T:
        if self._captured is not None and self._captured[2] != list(self._addresses()):
            self._captured, self._calls = None, 0
        if self._device.type != "cuda" or self._calls < self._warm_calls:
            self._calls += 1
            return self._work()
        if self._captured is None:
            with torch.cuda.device(self._device):
                self._captured = (*capture(self._work), list(self._addresses()))
        graph, result, _ = self._captured
        graph.replay()
        return result


def capture(
    work: Callable[[], T], stream: torch.cuda.Stream | None = None, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of ``work`` on the current device, and what it returns; nothing of it is run.

    Memory that nobody uses is freed first, so that the graph can have it. That takes longer than
    short work does: with a ``stream`` of one's own, and its memory ``pool``, it is left out.
    """
    graph = torch.cuda.CUDAGraph()
    if stream is None:
        with torch.cuda.graph(graph):
            return graph, work()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool)
        try:
            return graph, work()
        finally:
            graph.capture_end()
