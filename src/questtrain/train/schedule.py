"""The learning rate as a pure function of the step, so that a resumed run needs no state.

``cosine`` is the schedule of the paper's runs: half a cosine up over the warm-up, half a cosine
down over the rest. ``wsd`` warms up linearly, stays, and decays linearly at the end.
"""

from __future__ import annotations

import math

from questtrain.config import ScheduleConfig


def learning_rate(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of update ``step`` (0-based); the peak is reached at the warm-up's end."""
    last = total_steps - 1
    warmup_end = max(0, round(schedule.warmup_fraction * total_steps) - 1)
    start, final = schedule.start_ratio * peak, schedule.final_ratio * peak
    if step < warmup_end:
        progress = step / warmup_end
        return (
            _cosine(start, peak, progress)
            if schedule.name == "cosine"
            else (start + (peak - start) * progress)
        )
    if schedule.name == "cosine":
        return _cosine(peak, final, (step - warmup_end) / max(1, last - warmup_end))
    decay_steps = max(1, round(schedule.decay_fraction * total_steps))
    progress = max(0.0, (step - (last - decay_steps)) / decay_steps)
    return peak + (final - peak) * min(1.0, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
