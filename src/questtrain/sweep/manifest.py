"""``sweep.json``: what a sweep's folder is for, and every run that was ever asked for in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questtrain.errors import UserError
from questtrain.store.files import write_json
from questtrain.sweep.grid import Sweep
from questtrain.sweep.job import Job, longest_first

FILE = "sweep.json"


@dataclass(frozen=True)
class Manifest:
    """The experiment's own words, and its jobs, longest first."""

    name: str
    title: str
    paper: str | None
    figure: str | None
    jobs: list[Job]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a sweep's folder, None where no sweep has begun.

    UserError if it is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        jobs = [_job(folder, name, entry) for name, entry in content["jobs"].items()]
        return Manifest(
            content["name"],
            content["title"],
            content["paper"],
            content["figure"],
            longest_first(jobs),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): move it away, and the sweep"
            " writes a new one; its runs are kept."
        ) from error


def record_jobs(sweep: Sweep, folder: Path, jobs: Iterable[Job]) -> None:
    """Make the sweep's folder and add ``jobs`` to its manifest; those of earlier starts stay."""
    try:
        for place in (folder / ".sweep", folder / "logs"):
            place.mkdir(parents=True, exist_ok=True)
        with (folder / ".sweep" / "manifest.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = read_manifest(folder)
            together = {job.name: job for job in [*(before.jobs if before else []), *jobs]}
            write_json(folder / FILE, _content(sweep, longest_first(together.values())))
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


def _job(folder: Path, name: str, entry: dict[str, Any]) -> Job:
    return Job(name=name, folder=folder / name, **{**entry, "words": tuple(entry["words"])})
