"""The blocks' weights as training uses them between two optimizer steps: quantized once.

A matrix stacks the weights of layers that share an input (Q, K and V; gate and up), so that they
are one product. Their parameters become slices of one fp32 storage, so that they are quantized in
one go; they stay parameters of their own in every other respect.

What is derived from the parameters is kept until one of them changes: `refresh` compares their
version counters, which in-place operations raise (loading, a broadcast), the storage, which `.to()`
and assignment replace, and how many steps optimizers have made: a fused one raises no counter.
Writing through ``parameter.data`` goes unnoticed, as everywhere in torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from questtrain.kernels.autograd import Gradient, GradientSum

SIDE_STREAMS = 4


class _Steps:
    """Counts the steps of all optimizers of this process."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        self.count += 1


_steps = _Steps()


class Matrix(nn.Module):
    """The stacked weight ``[N, K]`` of layers that share an input, in the products' ``dtype``."""

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight for linear in linears)
        self.dtype = dtype
        self._stacked = torch.empty(0)
        self._seen: tuple[int, ...] = ()
        self.sum: GradientSum | None = None

    @property
    def is_stale(self) -> bool:
        """Whether a parameter has changed since what is used in a step was derived."""
        return self._seen != self._state()

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive anew what is used in a step."""
        seen, stacked = self._state(), self._stacked
        if not self._is_stacked():
            stacked = torch.cat([weight.detach() for weight in self.weights])
            for weight, part in zip(self.weights, torch.split(stacked, self._rows()), strict=True):
                weight.data = part
            seen = self._state()
        self._stacked = stacked
        self.derive(stacked)
        self._seen = seen

    def derive(self, stacked: Tensor) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        """Give up what is derived; `refresh` derives it anew, whatever has changed."""
        self._seen = ()
        self._buffers.update(dict.fromkeys(self._buffers))

    def _replace_buffers(self, **buffers: Tensor | None) -> None:
        """`register_buffer` the first time; its checks would cost the host more than a kernel."""
        if buffers.keys() <= self._buffers.keys():
            self._buffers.update(buffers)
            return
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def sum_gradients(self, first: bool) -> None:
        """Let the next backward add to a sum instead of the parameters' gradients."""
        total = torch.empty_like(self._stacked) if self.sum is None else self.sum.total
        self.sum = GradientSum(total, first)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Give the sum to the parameters as their gradients."""
        assert self.sum is not None
        grads = torch.split(self.gradient_of(self.sum.total), self._rows())
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad

    def gradient_of(self, total: Tensor) -> Tensor:
        """The gradient of the stacked weight from the sum of grad_yᵀ·x̂."""
        raise NotImplementedError

    @property
    def gradient(self) -> Gradient:
        """Where a backward leaves the weight's gradient."""
        return list(self.weights) if self.sum is None else self.sum

    def plain(self, x_MK: Tensor) -> Tensor:
        """``x·wᵀ``."""
        raise NotImplementedError

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """``x + added``, and its norm times wᵀ."""
        raise NotImplementedError

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate)·up`` of ``[M, 2K]`` times wᵀ."""
        raise NotImplementedError

    def _rows(self) -> list[int]:
        return [weight.shape[0] for weight in self.weights]

    def _state(self) -> tuple[int, ...]:
        of_weights = (n for weight in self.weights for n in (weight.data_ptr(), weight._version))
        return (_steps.count, *of_weights)

    def _is_stacked(self) -> bool:
        expected = self._stacked.data_ptr()
        for weight in self.weights:
            if weight.data_ptr() != expected or weight.device != self._stacked.device:
                return False
            expected += weight.numel() * weight.element_size()
        return True


def refresh(matrices: Iterable[Matrix]) -> None:
    """Derive anew what is stale. On a GPU several matrices at a time: a small one does not fill it.

    What a side stream allocates is used elsewhere and freed without its knowing; it is reused only
    here, after waiting for all that was issued before.
    """
    stale = [matrix for matrix in matrices if matrix.is_stale]
    device = stale[0].weights[0].device if stale else None
    if device is None or device.type != "cuda":
        for matrix in stale:
            matrix.refresh()
        return
    here, aside = torch.cuda.current_stream(device), _side_streams(device)
    for stream in aside:
        stream.wait_stream(here)
    for matrix, stream in zip(stale, cycle(aside)):
        with torch.cuda.stream(stream):
            matrix.refresh()
    for stream in aside:
        here.wait_stream(stream)


@cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(SIDE_STREAMS))  # type: ignore[no-untyped-call]
