"""Work on a GPU that is recorded once as a CUDA graph, which the host then issues at once.

Launching kernels one by one takes a host longer than small kernels take. A graph holds them with
the addresses that they read and write: input and result are the same memory at each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class GraphedCall(Generic[T]):
    """``work`` on a tensor: as it is in the first ``warm_calls`` calls, which compile and fill what
    libraries keep, then captured, then replayed; on a CPU always as it is.

    ``work`` reads a copy in a tensor as ``like``, or in a new one where the shape is another; that
    is captured anew after as many warm calls, and so is what ``reads`` a tensor that has got
    another storage. From the capture on the result is overwritten by the next call. What the graph
    needs of the device's memory it keeps until `forget`; graphs of one ``pool``
    (`torch.cuda.graph_pool_handle`) share it, and overwrite each other's results.
    """

    def __init__(
        self,
        work: Callable[[Tensor], T],
        like: Tensor,
        warm_calls: int,
        reads: Sequence[Tensor] = (),
        pool: Any = None,
    ) -> None:
        self._work, self._given, self._reads, self._pool = work, like, reads, pool
        self._warm_calls, self._calls = warm_calls, 0
        self._captured: tuple[torch.cuda.CUDAGraph, T, list[int]] | None = None

    @property
    def is_captured(self) -> bool:
        """Whether there is a graph to replay."""
        return self._captured is not None

    def forget(self) -> None:
        """Free the graph's memory; the next call captures anew."""
        self._captured = None

    def __call__(self, given: Tensor) -> T:
        if given.shape != self._given.shape:
            self._given = torch.empty_like(given)
        self._given.copy_(given)
        if self._captured is not None and self._captured[2] != self._addresses():
            self._captured, self._calls = None, 0
        if not self._given.is_cuda or self._calls < self._warm_calls:
            self._calls += 1
            return self._work(self._given)
        if self._captured is None:
            with torch.cuda.device(self._given.device):
                graph, result = capture(lambda: self._work(self._given), pool=self._pool)
            self._captured = graph, result, self._addresses()
        graph, result, _ = self._captured
        graph.replay()
        return result

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (self._given, *self._reads)]


def capture(
    work: Callable[[], T], stream: torch.cuda.Stream | None = None, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of ``work`` on the current device, and what it returns; nothing of it is run.

    Memory that nobody uses is freed first, so that the graph can have it. That takes longer than
    short work does: with a ``stream`` of one's own it is left out. ``pool`` is memory that graphs
    share.
    """
    graph = torch.cuda.CUDAGraph()
    if stream is None:
        with torch.cuda.graph(graph, pool=pool):
            return graph, work()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool)
        try:
            return graph, work()
        finally:
            graph.capture_end()
