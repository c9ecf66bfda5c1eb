"""This machine's GPUs, without torch: what ``nvidia-smi`` says of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from questtrain.errors import UserError

QUERY = "index,uuid,name,memory.total,memory.used"
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU as ``nvidia-smi`` numbers it; ``free_bytes`` when it was asked."""

    index: int
    uuid: str
    name: str
    free_bytes: int


def visible_gpus(chosen: Sequence[int] | None = None) -> list[Gpu]:
    """The GPUs that may be used: those that CUDA_VISIBLE_DEVICES leaves, and of these ``chosen``.

    Empty without ``nvidia-smi``. UserError for a chosen GPU that is not there.
    """
    gpus = _all_gpus()
    tokens = os.environ.get("CUDA_VISIBLE_DEVICES")
    if tokens is not None:
        wanted = [token.strip() for token in tokens.split(",") if token.strip()]
        gpus = [gpu for token in wanted for gpu in gpus if _is_named(gpu, token)]
    if chosen is None:
        return gpus
    by_index = {gpu.index: gpu for gpu in gpus}
    for index in chosen:
        if index not in by_index:
            there = ", ".join(map(str, by_index)) or "none"
            raise UserError(f"launcher.gpus: there is no GPU {index}; visible: {there}.")
    return [by_index[index] for index in chosen]


def _all_gpus() -> list[Gpu]:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in result.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[0].isdigit() and fields[3].isdigit():
            used = int(fields[4]) if fields[4].isdigit() else 0
            free = (int(fields[3]) - used) * MIB
            gpus.append(Gpu(int(fields[0]), fields[1], fields[2], free))
    return gpus


def _is_named(gpu: Gpu, token: str) -> bool:
    return token == str(gpu.index) or (not token.isdigit() and gpu.uuid.startswith(token))
