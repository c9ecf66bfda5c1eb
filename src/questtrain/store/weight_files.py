"""The safetensors files of a folder, read: ``model.safetensors``, or shards that
``model.safetensors.index.json`` lists, as Hugging Face writes them and `TensorFiles` does. Only
headers are read until a tensor is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from questtrain.errors import UserError
from questtrain.store.files import sha256_of, sha256_of_hashes
from questtrain.store.json_file import read_json
from questtrain.store.tensor_files import INDEX, SINGLE, Planned

OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


@dataclass(frozen=True)
class WeightFiles:
    """The names of all tensors, by file."""

    folder: Path
    names: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, folder: Path) -> WeightFiles:
        """UserError for a folder without such files, or with one that is damaged or absent."""
        if (folder / SINGLE).is_file():
            with _opened(folder / SINGLE) as file:
                return cls(folder, {SINGLE: tuple(file.keys())})
        try:
            index = read_json(folder / INDEX, _Index)
        except FileNotFoundError as error:
            raise UserError(_no_weights(folder)) from error
        names: dict[str, list[str]] = {}
        for name, file_name in index.weight_map.items():
            names.setdefault(file_name, []).append(name)
        for file_name, listed in names.items():
            _check_shard(folder, file_name, listed)
        return cls(folder, {file: tuple(listed) for file, listed in sorted(names.items())})

    @property
    def files(self) -> list[str]:
        """The files' names, and the index' where there is one."""
        return [*self.names] if SINGLE in self.names else [INDEX, *self.names]

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file for file, names in self.names.items() for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, planned: Planned) -> Tensor:
        """One tensor; UserError where there is none of that dtype and shape."""
        if name not in self:
            raise UserError(f"{self.folder} is damaged: it holds no {name}.")
        with _opened(self.folder / self._file_of[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        found = Planned(tensor.dtype, tuple(tensor.shape))
        if found != planned:
            raise UserError(
                f"{self.folder} is damaged: {name} is {found.dtype} {found.shape}, not"
                f" {planned.dtype} {planned.shape}."
            )
        return tensor

    def sha256(self) -> str:
        """Of the one file; of several, of their names and hashes, a line each."""
        hashes = {name: sha256_of(self.folder / name) for name in self.names}
        if len(hashes) == 1:
            return next(iter(hashes.values()))
        return sha256_of_hashes(hashes)

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape and safetensors' name of the dtype (``F32``, ``BF16``) of every tensor."""
        for file_name, names in self.names.items():
            with _opened(self.folder / file_name) as file:
                for name in names:
                    part = file.get_slice(name)
                    yield name, tuple(part.get_shape()), part.get_dtype()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, read one at a time."""
        for file_name, names in self.names.items():
            with _opened(self.folder / file_name) as file:
                for name in names:
                    yield name, file.get_tensor(name)


def _check_shard(folder: Path, file_name: str, listed: list[str]) -> None:
    """UserError unless the file, which the index names, lies in the folder and has its tensors."""
    path = folder / file_name
    if path.parent != folder or not path.is_file():
        raise UserError(f"{folder / INDEX} lists {file_name!r}, and there is no such file.")
    with _opened(path) as file:
        absent = set(listed) - set(file.keys())
    if absent:
        raise UserError(f"{path} lacks {min(absent)}, which {INDEX} says is there.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; UserError where it is damaged, then or when it is read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}.") from error


def _no_weights(folder: Path) -> str:
    others = sorted(file.name for form in OTHER_FORMATS for file in folder.glob(form))
    found = f", but {others[0]}: convert it to safetensors first" if others else ""
    return f"{folder} holds neither {SINGLE} nor {INDEX}{found}."
