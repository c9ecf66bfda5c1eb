"""Safetensors written one tensor at a time, in as many files as their size asks for.

``safetensors.torch.save_file`` wants all tensors of a file at once. Their places follow from their
shapes alone, so that each can be written when it is made, in any order, and be forgotten.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from questtrain.store.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

METADATA = {"format": "pt", "producer": "questtrain"}
"""What the header of a file for torch says."""

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint32: "U32",
}


class Planned(NamedTuple):
    """What a file will hold under a name."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class TensorFiles:
    """``model.safetensors`` in a folder, or parts of it of at most ``shard_bytes`` of tensors each
    and an index; a tensor that is larger has a part of its own.

    A context: what it leaves is complete, or its `__exit__` raises ValueError.
    """

    def __init__(
        self,
        folder: Path,
        planned: Mapping[str, Planned],
        shard_bytes: int,
        metadata: Mapping[str, str] = METADATA,
    ) -> None:
        self._planned = planned
        parts = _parts(planned, shard_bytes)
        names = _part_names(len(parts))
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        for file, part in zip(names, parts, strict=True):
            self._start(folder / file, part, metadata)
        if len(parts) > 1:
            by_name = {name: file for file, part in zip(names, parts, strict=True) for name in part}
            total = sum(each.size for each in planned.values())
            index = {"metadata": {"total_size": total}, "weight_map": by_name}
            write_json(folder / INDEX, index)

    def _start(self, path: Path, names: list[str], metadata: Mapping[str, str]) -> None:
        """Write a part's header. Readers view tensors in place: those of wide numbers come first,
        so that all lie at multiples of their numbers' size."""
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        offsets = {}
        for name in sorted(names, key=lambda name: -self._planned[name].dtype.itemsize):
            dtype, shape = self._planned[name]
            end = offset + self._planned[name].size
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            offsets[name], offset = offset, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = path.open("xb")
        self._files.append(file)
        file.write(struct.pack("<Q", len(text)) + text)
        for name, place in offsets.items():
            self._places[name] = (file, 8 + len(text) + place)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor at its place; it has the planned dtype and shape."""
        dtype, shape = self._planned[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}")
        file, place = self._places.pop(name)
        file.seek(place)
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        if kind is None and self._places:
            raise ValueError(f"{next(iter(self._places))} was planned and not written")


def _parts(planned: Mapping[str, Planned], shard_bytes: int) -> list[list[str]]:
    """Names in their order, cut where a part would be too large."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, each in planned.items():
        if parts[-1] and size + each.size > shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += each.size
    return parts


def _part_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{place:05}-of-{count:05}.safetensors" for place in range(1, count + 1)]
