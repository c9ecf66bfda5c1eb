"""Where on this machine a run can train: GPUs that several may share, or CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from questtrain.errors import UserError
from questtrain.sweep.job import Job
from questtrain.sweep.machine import Gpu

MOST_RUNS_PER_GPU = 4
"""Of small runs; more of them gain nothing, because the first four keep the GPU busy."""

MEMORY_SHARE = 0.9
"""Of a GPU's free memory: the estimate of a run's peak is good to 6%, and memory fragments."""

CONTEXT_BYTES = 2**30
"""What CUDA and the compiled kernels take in each process, beside the run's tensors."""


@dataclass
class Place:
    """A GPU, or all CPU cores together: who trains there, and what its children are told."""

    label: str
    most_runs: int
    free_bytes: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    running: list[Job] = field(default_factory=list)

    def __str__(self) -> str:
        how = "one run" if self.most_runs == 1 else f"up to {self.most_runs} runs"
        return f"{self.label} ({how})"

    def fits(self, job: Job) -> bool:
        """An empty place fits any run: if it is too large after all, it says so itself."""
        if not self.running or len(self.running) >= self.most_runs or self.free_bytes is None:
            return len(self.running) < self.most_runs
        needed = sum(other.memory_bytes + CONTEXT_BYTES for other in [*self.running, job])
        return needed <= MEMORY_SHARE * self.free_bytes


class Places:
    """All places of the machine, filled evenly."""

    def __init__(self, places: Sequence[Place], workers: int | None) -> None:
        self.places, self.workers = list(places), workers

    def take(self, job: Job) -> Place | None:
        """The emptiest place in which ``job`` fits, now taken; None where it has to wait."""
        busy = sum(len(place.running) for place in self.places)
        fitting = [place for place in self.places if place.fits(job)]
        if not fitting or (self.workers is not None and busy >= self.workers):
            return None
        place = min(fitting, key=lambda place: len(place.running))
        place.running.append(job)
        return place

    def __str__(self) -> str:
        bound = "" if self.workers is None else f", {self.workers} at a time"
        return ", ".join(str(place) for place in self.places) + bound


def place_on(gpu: Gpu, runs: int | None) -> Place:
    """A GPU for so many ``runs``; None: for as many as fit into its memory, four at most."""
    # By PCI order CUDA numbers the GPUs as nvidia-smi does.
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu.index)}
    free = None if runs else gpu.free_bytes
    return Place(f"GPU {gpu.index}", runs or MOST_RUNS_PER_GPU, free, environment)


def check_devices(jobs: Sequence[Job]) -> None:
    """UserError for a run that names its GPU, or asks for several: the launcher chooses one."""
    for word in {word for job in jobs for word in job.words}:
        key, _, value = word.partition("=")
        if key == "device" and value.startswith("cuda:"):
            raise UserError(
                f"{word} names one GPU for every run: the launcher gives each its own."
                f" launcher.gpus=[{value.removeprefix('cuda:')}] keeps to that one."
            )
        if key == "gpus" and value not in ("1", "null"):
            raise UserError(
                f"{word}: launcher=local gives each run one GPU; launcher=slurm with"
                f" launcher.gpus_per_node={value}, and without {word}, gives it several."
            )
