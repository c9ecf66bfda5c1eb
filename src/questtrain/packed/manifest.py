"""``questtrain.json``: what a packed folder says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questtrain.config import TrainConfig
from questtrain.config.json_form import config_from_json, json_form
from questtrain.errors import UserError
from questtrain.store.files import sha256_of, write_json
from questtrain.store.json_file import Count, read_json
from questtrain.version import __version__

MANIFEST = "questtrain.json"
FORMAT = "questtrain-packed"
VERSION = 1
"""Of the folder's layout: raised where an older questtrain would read a newer folder wrongly."""

REMEDY = "Export the run again."


@dataclass(frozen=True)
class Manifest:
    """``config`` is the run's, ``record`` its row of the table of runs, ``tokenizer`` a file of the
    folder and ``bos_id`` the token that began documents; tensors that are no codes are in
    ``dtype``; ``sha256`` is of every file that the model is made of."""

    format: str
    version: Count
    questtrain_version: str
    step: Count
    dtype: str
    tokenizer: str
    bos_id: Count
    config: dict[str, Any]
    record: dict[str, Any]
    sha256: dict[str, str]

    @classmethod
    def of(
        cls,
        folder: Path,
        config: TrainConfig,
        record: dict[str, object],
        step: int,
        dtype: str,
        tokenizer: str,
        bos_id: int,
        files: list[str],
    ) -> Manifest:
        """Of a folder whose ``files`` are written."""
        checksums = {name: sha256_of(folder / name) for name in files}
        mapping = json_form(config)
        return cls(
            FORMAT, VERSION, __version__, step, dtype, tokenizer, bos_id, mapping, record, checksums
        )

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))

    def train_config(self, folder: Path) -> TrainConfig:
        """The run's config; UserError where it is none of this version's."""
        try:
            return config_from_json(TrainConfig, self.config)
        except UserError as error:
            raise UserError(f"{folder / MANIFEST}: config: {error}") from error

    def check_files(self, folder: Path) -> None:
        """UserError names a file that is missing, or is not the one that was written."""
        for name, expected in self.sha256.items():
            if not (folder / name).is_file():
                raise UserError(f"{folder} is damaged: {name} is missing. {REMEDY}")
            if sha256_of(folder / name) != expected:
                raise UserError(
                    f"{folder} is damaged: {name} does not match its checksum"
                    f" ({(folder / name).stat().st_size:,} bytes). {REMEDY}"
                )


def read_manifest(folder: Path) -> Manifest:
    """UserError where the folder is of a newer version, of something else, or damaged;
    FileNotFoundError where it has no manifest."""
    path = folder / MANIFEST
    head = read_json(path, _Head, REMEDY)
    if head.format != FORMAT:
        raise UserError(f"{path} is of format {head.format!r}, and what is read here is {FORMAT}.")
    if head.version > VERSION:
        raise UserError(
            f"{folder} was written by questtrain {head.questtrain_version}, in version"
            f" {head.version} of the packed format; this is questtrain {__version__}, which reads"
            f" up to version {VERSION}: update it."
        )
    return read_json(path, Manifest, REMEDY)


@dataclass(frozen=True)
class _Head:
    """What every version has."""

    format: str
    version: Count
    questtrain_version: str
