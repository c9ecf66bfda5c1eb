"""One run of a sweep, resolved, and where its files lie.

::

    runs_dir/SWEEP/sweep.json          the manifest: every run ever asked for in this folder
    runs_dir/SWEEP/NAME/               the run's folder
    runs_dir/SWEEP/logs/NAME.log       what its attempts printed, one after the other
    runs_dir/SWEEP/.sweep/NAME.lock    locked by whoever trains the run
    runs_dir/SWEEP/.sweep/NAME.json    the last attempt and its outcome
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from questtrain.store.json_file import Count, Positive


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """What the manifest holds of a run, under its name.

    ``words`` are those of ``questtrain train``, complete: ``runs_dir=`` and ``name=`` included.
    ``flops`` is all of training, ``memory_bytes`` the estimated peak on the device.
    """

    words: tuple[str, ...]
    model: str
    bits: str
    method: str
    steps: Annotated[int, Ge(1)]
    tokens: Annotated[int, Ge(1)]
    flops: Positive
    memory_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Job(ManifestEntry):
    """A run of a sweep before it starts."""

    name: str
    folder: Path

    @property
    def sweep_folder(self) -> Path:
        return self.folder.parent

    @property
    def log_file(self) -> Path:
        return self.sweep_folder / "logs" / f"{self.name}.log"

    @property
    def claim_file(self) -> Path:
        return self.sweep_folder / ".sweep" / f"{self.name}.lock"

    @property
    def attempt_file(self) -> Path:
        return self.sweep_folder / ".sweep" / f"{self.name}.json"

    @property
    def run_file(self) -> Path:
        """The run record; it exists when the run has ended."""
        return self.folder / "run.json"


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """The order in which a sweep trains: by FLOPs, so that the last to start are short."""
    return sorted(jobs, key=lambda job: (-job.flops, job.name))
