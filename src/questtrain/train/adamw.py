"""AdamW whose kernel updates all weights of a group at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from questtrain.kernels.ops.adamw import adamw_


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` in its fused form, with the same state, by one kernel where those run.

    ``grad_scale`` divides the gradients, where it is set. A step uses them up: what is in them
    afterwards is not defined. Weights are fp32.
    """

    grad_scale: Tensor | None = None

    # torch wraps these so that a compiled program leaves them alone, and imports its compiler for
    # that: a second before a run on a CPU, which compiles nothing, could begin.
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            states = [self._state_of(weight) for weight in weights]
            means, squares, steps = (
                [state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")
            )
            torch._foreach_add_(steps, 1)
            beta1, beta2 = group["betas"]
            adamw_(
                weights,
                [weight.grad.contiguous() for weight in weights],
                means,
                squares,
                steps,
                self.grad_scale,
                group["lr"],
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
            )
        return loss

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state
