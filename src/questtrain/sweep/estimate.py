"""GPU-hours of runs that have not trained yet: their FLOPs at a share (MFU) of a GPU's peak."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from questtrain.config.gpus import PEAK_BF16_FLOPS, peak_bf16_flops
from questtrain.errors import unknown
from questtrain.sweep.job import Job
from questtrain.sweep.machine import visible_gpus
from questtrain.sweep.state import read_record

ASSUMED_MFU = 0.40
DEFAULT_GPU = "H100"


@dataclass(frozen=True)
class Speed:
    """Peak dense BF16 FLOP/s, and the share of it that training reaches, by model and otherwise.

    ``gpu`` and ``source`` say where the two come from.
    """

    gpu: str
    peak: float
    mfu: float
    mfu_of_model: dict[str, float]
    source: str

    def gpu_hours(self, job: Job) -> float:
        return job.flops / (self.peak * self.mfu_of_model.get(job.model, self.mfu)) / 3600


def choose_speed(jobs: Sequence[Job], mfu: float | None, gpu: str | None) -> Speed:
    """What to estimate with: what was given; else measured by finished runs of this sweep, or of
    other runs of the same model beside it; else an assumption. UserError for a bad value."""
    name, peak = _peak(gpu)
    if mfu is not None:
        return Speed(name, peak, mfu, {}, f"MFU {mfu:.2f} (given)")
    folder = jobs[0].sweep_folder
    in_sweep = _measured(job.folder for job in jobs)
    models = {job.model for job in jobs}
    records = [*folder.parent.glob("*/run.json"), *folder.parent.glob("*/*/run.json")]
    elsewhere = _measured(record.parent for record in records)
    by_model = {model: in_sweep.get(model) or elsewhere.get(model, []) for model in models}
    medians = {model: statistics.median(values) for model, values in by_model.items() if values}
    if not medians:
        return Speed(name, peak, ASSUMED_MFU, {}, f"MFU {ASSUMED_MFU:.2f} (an assumption)")
    overall = statistics.median(medians.values())
    return Speed(name, peak, overall, medians, f"MFU {overall:.2f} (measured, by model)")


def _measured(runs: Iterable[Path]) -> dict[str, list[float]]:
    """The MFUs of completed runs, by model."""
    found: dict[str, list[float]] = {}
    for run in runs:
        record = read_record(run)
        if record is not None and record.status == "completed" and record.model and record.mfu:
            found.setdefault(record.model, []).append(record.mfu)
    return found


def _peak(gpu: str | None) -> tuple[str, float]:
    if gpu is not None:
        by_name = {name.lower(): name for name in PEAK_BF16_FLOPS}
        if gpu.lower() not in by_name:
            raise unknown("gpu", gpu, PEAK_BF16_FLOPS)
        name = by_name[gpu.lower()]
        return name, PEAK_BF16_FLOPS[name]
    for device in visible_gpus():
        peak = peak_bf16_flops(device.name)
        if peak is not None:
            return device.name, peak
    return DEFAULT_GPU, PEAK_BF16_FLOPS[DEFAULT_GPU]
