"""Forward and backward of a step as one CUDA graph, which the host issues at once.

Launching a step's kernels one by one takes a host 10 to 40 ms, more than the kernels of a small
model take. A graph records them once, with the addresses that they read and write, and is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

WARM_CALLS = 2
"""Before one is captured: they compile, and fill what libraries keep."""

Work = Callable[[Tensor], Tensor]


class StepGraph:
    """``work`` on a batch, first as it is, then captured, then replayed.

    It gives ``weights``, which have none before, their gradients, and returns the loss. It is
    captured anew where a graph does not serve: for a batch of another shape, and when a weight has
    got another storage. What the graph needs of the device's memory it keeps until `forget`.
    """

    def __init__(self, work: Work, weights: Sequence[nn.Parameter]) -> None:
        self._work, self._weights = work, weights
        self._warm_calls = 0
        self._captured: _Captured | None = None

    @property
    def is_captured(self) -> bool:
        return self._captured is not None

    def forget(self) -> None:
        """Free the graph's memory; the next call captures anew."""
        self._captured = None

    def __call__(self, batch: Tensor) -> Tensor:
        if self._captured is not None and not self._serves(self._captured, batch):
            self._captured, self._warm_calls = None, 0
        if self._warm_calls < WARM_CALLS:
            self._warm_calls += 1
            return self._work(batch)
        if self._captured is None:
            self._captured = self._capture(batch)
        captured = self._captured
        captured.batch.copy_(batch)
        captured.graph.replay()
        for weight, gradient in zip(self._weights, captured.gradients, strict=True):
            weight.grad = gradient
        return captured.loss.clone()

    def _capture(self, batch: Tensor) -> _Captured:
        graph, batch = torch.cuda.CUDAGraph(), batch.clone()
        with torch.cuda.device(batch.device), torch.cuda.graph(graph):
            loss = self._work(batch)
        gradients = [weight.grad for weight in self._weights]
        return _Captured(graph, batch, loss, gradients, self._addresses())

    def _serves(self, captured: _Captured, batch: Tensor) -> bool:
        return batch.shape == captured.batch.shape and self._addresses() == captured.addresses

    def _addresses(self) -> list[int]:
        return [weight.data_ptr() for weight in self._weights]


class _Captured(NamedTuple):
    """A graph and the tensors that it reads and writes, in the same memory at each replay."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    addresses: list[int]
