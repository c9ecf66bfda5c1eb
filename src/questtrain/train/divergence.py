"""Whether a run's loss is still of use.

Trouble is a loss or a gradient's norm that is NaN or infinite, and, where ``train.on_divergence``
is rollback, a spike. A loss is a spike above

    median + spike_deviations × max(1.4826 × MAD, 1% of the median)

of the ``spike_window`` losses before it: 1.4826 × MAD (the median of the distances from the median)
is the standard deviation of a normal distribution, and unlike that is not moved by outliers; the
other term is for losses that hardly differ, as those of large batches do. The rule waits until the
window is full, and begins anew where a run changes its bits. It is computed on the host, where the
trainer waits for the device anyway; a step adds one small copy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from questtrain.config import LoopConfig

MAD_TO_DEVIATION = 1.4826
"""1 / Φ⁻¹(3/4)."""

LEAST_DEVIATION = 0.01
"""Of the median."""

MOST_NOTED = 1024
"""Steps between two looks at the most: what is noted lies on the device."""


@dataclass(frozen=True)
class Trouble:
    """``step`` is the update, from 0, whose loss was of no use, or would be: that of weights whose
    validation was. ``what`` says so."""

    step: int
    what: str


class Diverged(Exception):
    """A run cannot go on from here; all of its ranks raise it at the same step."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.what)
        self.trouble = trouble


class LossWatch:
    """Notes the loss and the gradient's norm of each update, and looks at them when asked."""

    def __init__(self, settings: LoopConfig) -> None:
        looks_for_spikes = settings.on_divergence == "rollback"
        self._deviations = settings.spike_deviations if looks_for_spikes else None
        self._before: deque[float] = deque(maxlen=settings.spike_window)
        self._noted: list[Tensor] = []

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Those of the next update, scalars on the device, which is not waited for."""
        self._noted.append(torch.stack((loss, norm)))

    @property
    def is_full(self) -> bool:
        """Whether it is time to look."""
        return len(self._noted) >= MOST_NOTED

    def look(self, step: int) -> Trouble | None:
        """The first trouble among what was noted up to now, after ``step`` updates."""
        if not self._noted:
            return None
        noted = torch.stack(self._noted).tolist()
        self._noted.clear()
        for update, (loss, norm) in enumerate(noted, start=step - len(noted)):
            if what := self._problem(loss, norm, update + 1):
                return Trouble(update, what)
            self._before.append(loss)
        return None

    def _problem(self, loss: float, norm: float, step: int) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss or its gradient became NaN or infinite at step {step}"
        before = self._before
        if self._deviations is None or len(before) < (before.maxlen or 0):
            return None
        usual, most = spike_limit(before, self._deviations)
        if loss <= most:
            return None
        return (
            f"the loss rose to {loss:.4f} at step {step}, from a median of {usual:.4f} in the"
            f" {len(before)} steps before"
        )

    def begin_anew(self, losses: Iterable[float] = ()) -> None:
        """Forget what was noted; ``losses`` are those before the next update, oldest first."""
        self._noted.clear()
        self._before.clear()
        self._before.extend(losses)

    @property
    def losses(self) -> Tensor | None:
        """What a checkpoint keeps for `begin_anew`, fp32 ``[≤ spike_window]``, as they were
        computed; None where spikes are not looked for."""
        if self._deviations is None:
            return None
        return torch.tensor(list(self._before), dtype=torch.float32)


def spike_limit(losses: Sequence[float], deviations: float) -> tuple[float, float]:
    """The median of some losses, and above what the next one is a spike."""
    usual = median(losses)
    spread = MAD_TO_DEVIATION * median(abs(loss - usual) for loss in losses)
    return usual, usual + deviations * max(spread, LEAST_DEVIATION * abs(usual))
