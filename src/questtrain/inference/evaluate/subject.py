"""What is evaluated: a run's checkpoint or an export of one, and where its results go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from questtrain.device import device_name
from questtrain.errors import UserError
from questtrain.inference.load import TrainedModel, check_run, load_run
from questtrain.model import PackedLlama
from questtrain.packed import is_packed_folder
from questtrain.quant.packed_weight import CodedWeight, IntegerWeight
from questtrain.store.evaluations import (
    FOLDER,
    Evaluation,
    TaskResult,
    now,
    record_evaluation,
    write_evaluation,
)
from questtrain.store.revision import git_revision
from questtrain.version import __version__


@dataclass(frozen=True)
class Subject:
    """``folder`` is that of the run or the export; ``output`` a folder for results that are not to
    be the run's own."""

    trained: TrainedModel
    folder: Path
    output: Path | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        step: int | None = None,
        packed: bool | None = None,
        output: str | Path | None = None,
    ) -> Subject:
        """The first arguments as in `questtrain.inference.load_run`. UserError also where results
        could not be written in the end."""
        trained = load_run(folder, device, step, packed)
        place = None if output is None else Path(output).expanduser()
        subject = cls(trained, Path(folder).expanduser().resolve(), place)
        _require_writable(subject.results)
        return subject

    @property
    def results(self) -> Path:
        """The folder of its evaluations: in a run's folder, beside an export's, whose files are
        certified as they are."""
        return self.output or _own_results(self.folder)

    def evaluation(
        self,
        suite: str,
        tasks: dict[str, TaskResult],
        seconds: float,
        limit: float | None = None,
        seed: int | None = None,
        versions: dict[str, str] | None = None,
    ) -> Evaluation:
        """What a suite found, with all that it is about; ``versions`` of what asked."""
        own = {"questtrain": __version__, "torch": str(torch.__version__)}
        revision = git_revision()
        return Evaluation(
            suite=suite,
            source=self.folder.name,
            step=self.trained.step,
            bits=self.trained.config.bits,
            packed=is_packed(self.trained.model),
            device=device_name(next(self.trained.model.parameters()).device),
            date=now(),
            seconds=round(seconds, 3),
            seed=seed,
            limit=limit,
            sequence_length=self.trained.config.sequence_length,
            versions=own | ({"git": revision} if revision else {}) | (versions or {}),
            tasks=tasks,
        )

    def record(self, evaluation: Evaluation, samples: str | None = None) -> Path:
        """Write the file, and the columns of a run's row where they belong there."""
        if self.results == self.folder / FOLDER:
            return record_evaluation(self.folder, evaluation, samples)
        return write_evaluation(self.results, evaluation, samples)


def check_subject(
    folder: str | Path, step: int | None = None, output: str | Path | None = None
) -> None:
    """UserError where `Subject.open` would raise one for what is seen without reading weights."""
    check_run(folder, step)
    own = _own_results(Path(folder).expanduser().resolve())
    _require_writable(own if output is None else Path(output).expanduser())


def _own_results(folder: Path) -> Path:
    if is_packed_folder(folder):
        return folder.with_name(f"{folder.name}.{FOLDER}")
    return folder / FOLDER


def is_packed(model: torch.nn.Module) -> bool:
    """Whether weights are held as codes."""
    if isinstance(model, PackedLlama):
        return True
    return any(isinstance(module, IntegerWeight | CodedWeight) for module in model.modules())


def _require_writable(folder: Path) -> None:
    """UserError where files could not be added to a folder that is there, or would be made."""
    place = folder
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    reason = f"no permission to write in {place}" if place.is_dir() else f"{place} is a file"
    raise UserError(
        f"the results cannot be written to the folder {folder}: {reason}. output=FOLDER takes them"
        " elsewhere."
    )
