"""Forward and backward of a step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from questtrain.cuda_graph import GraphedCall

WARM_CALLS = 2
"""Steps before one is captured."""


class StepGraph:
    """``work`` on a batch, which gives ``weights``, that have none before, their gradients, and
    returns the loss.

    It is captured anew for a batch of another shape, and when a weight has got another storage.
    """

    def __init__(
        self,
        work: Callable[[Tensor], Tensor],
        weights: Sequence[nn.Parameter],
        device: torch.device,
    ) -> None:
        self._work, self._weights = work, weights
        self._batch = torch.empty(0, dtype=torch.int64, device=device)
        self.call = GraphedCall(self._loss_and_gradients, device, WARM_CALLS, self._addresses)

    def __call__(self, batch: Tensor) -> Tensor:
        """The loss of ``batch``, int64 ``[rows, T+1]``; no later call overwrites it."""
        if batch.shape != self._batch.shape:
            self._batch = torch.empty_like(batch)
        self._batch.copy_(batch)
        loss, gradients = self.call()
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return loss.clone()

    def _loss_and_gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        loss = self._work(self._batch)
        return loss, [weight.grad for weight in self._weights]

    def _addresses(self) -> list[int]:
        return [self._batch.data_ptr(), *(weight.data_ptr() for weight in self._weights)]
