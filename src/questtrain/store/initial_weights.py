"""``initial_weights.json``: what a run with ``init_from`` began with, written into its folder, so
that it needs the other one no more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from questtrain.store.files import write_json
from questtrain.store.json_file import Count, read_json

FILE = "initial_weights.json"


@dataclass(frozen=True)
class InitialWeights:
    """``kind`` says what ``init_from`` was, ``step`` (of a run) which checkpoint; ``sha256`` is of
    its weights' file, or of names and hashes of several."""

    init_from: str
    kind: str
    sha256: str
    step: Count | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def read_initial_weights(folder: Path) -> InitialWeights | None:
    """None for a run that began with weights of its own; DamagedJson names what is wrong."""
    try:
        return read_json(folder / FILE, InitialWeights)
    except FileNotFoundError:
        return None
