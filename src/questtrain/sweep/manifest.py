"""``sweep.json``: what a sweep's folder is for, and every run that was ever asked for in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questtrain.errors import UserError
from questtrain.store.files import locked, write_json
from questtrain.store.json_file import read_json
from questtrain.sweep.grid import Sweep
from questtrain.sweep.job import Job, ManifestEntry, longest_first

FILE = "sweep.json"


@dataclass(frozen=True)
class _File:
    """The jobs as JSON holds them: the folder that the file lies in says where each run is. The
    rest of the file is the experiment's own words."""

    jobs: dict[str, ManifestEntry]


def read_manifest(folder: Path) -> list[Job] | None:
    """The jobs of a sweep's folder, longest first; None where no sweep has begun.

    DamagedJson names what is wrong with it.
    """
    remedy = "Move it away, and the sweep writes a new one; its runs are kept."
    try:
        found = read_json(folder / FILE, _File, remedy)
    except FileNotFoundError:
        return None
    jobs = [Job(name=name, folder=folder / name, **vars(e)) for name, e in found.jobs.items()]
    return longest_first(jobs)


def record_jobs(sweep: Sweep, folder: Path, jobs: Iterable[Job]) -> None:
    """Make the sweep's folder and add ``jobs`` to its manifest; those of earlier starts stay."""
    try:
        for place in (folder / ".sweep", folder / "logs"):
            place.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".sweep" / "manifest.lock"):
            by_name = {job.name: job for job in [*(read_manifest(folder) or []), *jobs]}
            write_json(folder / FILE, _content(sweep, longest_first(by_name.values())))
    except OSError as error:
        raise UserError(f"sweep folder {folder} cannot be written: {error.strerror}.") from error


def _content(sweep: Sweep, jobs: Iterable[Job]) -> dict[str, Any]:
    entries = {job.name: asdict(job) for job in jobs}
    for entry in entries.values():
        del entry["name"], entry["folder"]  # the key, and beside this file wherever it is moved
    return {
        "name": sweep.name,
        "title": sweep.title,
        "paper": sweep.paper,
        "figure": sweep.figure,
        "jobs": entries,
    }
