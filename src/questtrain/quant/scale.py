"""Scales: the half-width ``s`` of a grid, from the operand's root mean square.

``s = α·rms`` a row, with the α of the format (`questtrain.config.gaussian`), where a file is to
store it rounded to 16 bits; or one trained number a tensor, which starts at α·rms. What is a row
here is a group of columns where the quantizer divides rows into groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from questtrain.errors import UserError
from questtrain.kernels.extension import never_compiled
from questtrain.kernels.ops.quantize import row_rms
from questtrain.quant.estimator import has_backward, is_exporting

TINY = 1e-30
"""Smallest rms: an all-zero row quantizes to finite values. Power-of-two scaling is exact where
the squares are normal numbers: in fp32, for an rms over about 1e-18."""


class GaussianScale(nn.Module):
    """``s = α·rms`` a row: ``[..., K] → [..., 1]``, not differentiated."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * row_rms(x).clamp_min(TINY)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class RoundedScale(nn.Module):
    """A Gaussian scale as a file of 16-bit scales holds it: ``[..., K] → [..., 1]``.

    One quantity is rounded, the *unit*: half a step of the grid, ``s/(2·half_width)``, of which
    every value is a whole multiple of at most 8 bits. So ``s``, the values and the unit that is
    read off ``s`` again are exact in fp32, and a step, two units, is a number of ``dtype``, too. In
    fp16 a unit under 6.1e-5 keeps fewer digits, one under 6e-8, which would be 0 and divide, is
    that smallest number, and one over 65,504 is that largest. NaN and infinity stay what they are.
    """

    def __init__(self, scale: GaussianScale, half_width: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale, self.dtype = scale, dtype
        self.units = 2 * half_width
        numbers = torch.finfo(dtype)
        self.smallest, self.largest = numbers.smallest_normal * numbers.eps, numbers.max

    @property
    def alpha(self) -> float:
        """The scale's in units of the rms, before it is rounded."""
        return self.scale.alpha

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        unit: Tensor = self.scale(x) / self.units
        rounded = unit.to(self.dtype).to(x.dtype).clamp(self.smallest, self.largest)
        return self.units * torch.where(unit.isfinite(), rounded, unit)

    def extra_repr(self) -> str:
        return f"units of {self.dtype}"


class LearnedScalar(nn.Module):
    """One trained number a tensor (``[1]``), which the first operand that is not all zero
    initialises; until then it is zero.

    Whether it is initialised is a buffer, so that checkpoints, copies and averages of a model carry
    it. Under torch.distributed the statistics of all ranks are averaged, so that every rank starts
    from the same number; a parameter that ``fully_shard`` has sharded gets it in its shard.
    """

    initialised: Tensor
    """A scalar, 1 once the number has started, else 0. A float, because averages of models (SWA,
    EMA) subtract and scale buffers."""

    def __init__(self, gradient_levels: int | None) -> None:
        super().__init__()
        self._shard: list[Tensor] = []  # in a list, for a module's attributes become parameters
        self.value = nn.Parameter(torch.zeros(1))
        self.register_buffer("initialised", torch.zeros(()))
        self.gradient_levels = gradient_levels
        self._known_initialised = False  # spares a look at the buffer: a wait for the GPU

    def initial(self, x: Tensor, rms: Tensor) -> Tensor:
        """What to start from, a scalar tensor, given the operand's root mean square."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The number in x's dtype; its gradient is scaled as in LSQ if ``gradient_levels`` is
        given: by 1/√(numel·levels)."""
        if not self._known_initialised:
            if is_exporting():
                raise UserError(
                    "a learned scale has not started yet: call the model once on some data before"
                    " torch.export."
                )
            self._initialise(x)
        value = self.value.to(x.dtype)
        if not has_backward():
            return value.detach()
        if self.gradient_levels is None:
            return value
        gradient_scale = 1 / math.sqrt(max(1, x.numel()) * self.gradient_levels)
        return value.detach() + gradient_scale * (value - value.detach())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Not initialised; what follows ``to_empty`` where a model is made on the meta device."""
        self.value.zero_()
        self.initialised.zero_()
        self._known_initialised = False

    @never_compiled
    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if not self.initialised:
            rms = mean(x.square()).sqrt()
            if not rms > 0:
                return
            self._check_kept()
            start = self.initial(x, rms)
            self.value.copy_(start)
            for shard in self._shard:
                shard.to_local().fill_(start)  # type: ignore[attr-defined]
            self.initialised.fill_(1)
        self._known_initialised = True

    def _check_kept(self) -> None:
        """UserError where a wrapper has put a view or a replica in the parameter's place, which is
        thrown away after the forward."""
        if not isinstance(self.value, nn.Parameter):
            raise UserError(
                "the start value of a learned scale would be lost here (FullyShardedDataParallel,"
                " DataParallel and functional_call do not keep what a forward writes): call the"
                " model once on some data before wrapping it, or use fully_shard()."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Remember the shard that the gathered parameter replaces: during a forward, fully_shard
        has that one here, and what is written to it is lost."""
        if name == "value":
            before = self._parameters.get("value")
            if hasattr(value, "to_local"):
                self._shard = []
            elif hasattr(before, "to_local"):
                self._shard = [cast(Tensor, before)]
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedScalar:
        """As every module's, but `half` and `bfloat16` of a model leave the number in fp32, which
        its small updates need."""

        def applied(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            wide = torch.promote_types(changed.dtype, torch.float32)
            return changed if changed.dtype == wide else tensor.to(changed.device, wide)

        super()._apply(applied, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        old = prefix + "_extra_state"  # the flag's name in checkpoints of version 0.1.0
        if old in state:
            state.setdefault(prefix + "initialised", state.pop(old))
        super()._load_from_state_dict(state, prefix, *rest)
        # at once: a graph that is compiled or captured next must not have to look
        self._known_initialised = not self.initialised.is_meta and bool(self.initialised)


class LearnedStep(LearnedScalar):
    """LSQ (arXiv 1902.08153): the grid's step is trained; ``s`` is ``half_width`` steps.

    Starts at the MSE-optimal step of a Gaussian with the tensor's rms. A step may cross zero in
    training; its sign means nothing on a symmetric grid.
    """

    def __init__(self, alpha: float, half_width: float) -> None:
        super().__init__(largest_level(half_width))
        self.alpha, self.half_width = alpha, half_width

    def initial(self, x: Tensor, rms: Tensor) -> Tensor:
        return self.alpha * rms / self.half_width

    def forward(self, x: Tensor) -> Tensor:
        return self.half_width * super().forward(x).abs().clamp_min(TINY)


class LearnedClip(LearnedScalar):
    """PACT (arXiv 1805.06085): the clipping value ``s`` itself is trained."""

    def __init__(self, alpha: float) -> None:
        super().__init__(gradient_levels=None)
        self.alpha = alpha

    def initial(self, x: Tensor, rms: Tensor) -> Tensor:
        return self.alpha * rms

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs().clamp_min(TINY)


class LearnedOffset(LearnedScalar):
    """LSQ+ (arXiv 2004.09576): the middle of the grid is trained. Starts at the tensor's mean, the
    MSE-optimal one for a symmetric distribution."""

    def __init__(self, half_width: float) -> None:
        super().__init__(largest_level(half_width))

    def initial(self, x: Tensor, rms: Tensor) -> Tensor:
        return mean(x)


def largest_level(half_width: float) -> int:
    """LSQ's q_max for a grid that ends ``half_width`` steps from its middle; at 1 bit it would be
    0, which must not divide (trap 8)."""
    return max(1, math.floor(half_width))


def mean(x: Tensor) -> Tensor:
    """Mean over all values, of all ranks where there are several; 0 of none at all."""
    total = torch.stack([x.sum(), x.new_tensor(x.numel())])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total[0] / total[1].clamp_min(1)


def learned_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained steps, clipping values and offsets of a model, each ``[1]``: what an optimizer
    that was made before `convert` has to be given (``optimizer.add_param_group``)."""
    return [scalar.value for scalar in learned_scalars(model)]


def learned_scalars(model: nn.Module) -> list[LearnedScalar]:
    """All trained steps, clipping values and offsets of a model."""
    return [module for module in model.modules() if isinstance(module, LearnedScalar)]
