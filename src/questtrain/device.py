"""The device a run trains on: its choice, its name, its memory, its peak arithmetic rate."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from questtrain.config.gpus import peak_bf16_flops
from questtrain.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` → device; UserError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise UserError(f"device={name}: this machine has no CUDA device; device=cpu works.")
    if index and int(index) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: this machine has cuda:0 to {torch.cuda.device_count() - 1}."
        )
    return torch.device(name)


def check_gpus(name: str, wanted: int) -> None:
    """UserError unless so many processes on this machine, none on the CPU, each find a GPU."""
    choose_device(name)
    count = torch.cuda.device_count()
    if count < wanted:
        advice = f"gpus={count} takes all" if count else "device=cpu starts them on its cores"
        raise UserError(f"gpus={wanted}: this machine has {count or 'no'} GPUs; {advice}.")


def choose_device_of_rank(name: str, local_rank: int) -> torch.device:
    """The same for one of several processes on a machine, each with a GPU of its own."""
    device = choose_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise UserError(
            f"device={name} is one GPU for several processes; device=cuda gives each one."
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} (LOCAL_RANK, from 0) of this machine finds {count} GPUs: start"
            " one process a GPU, or give device=cpu."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What a run record calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


CPUINFO = Path("/proc/cpuinfo")

INSTRUCTIONS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimddp": "dot product",
    "i8mm": "INT8 matrix",
    "sve": "SVE",
}
"""Of a CPU's flags in Linux, those that decide how fast products are, and their names."""


def cpu_name() -> str:
    """The CPU's model as its maker names it, else the name of its family."""
    named = _cpuinfo("model name") or platform.processor() or platform.machine()
    return " ".join(named.split())


def cpu_instructions() -> list[str]:
    """Which of `INSTRUCTIONS` the CPU has; empty where the system does not say."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for flag, name in INSTRUCTIONS.items() if flag in flags]


def _cpuinfo(key: str) -> str | None:
    """A line of the first CPU in Linux's list."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


def peak_flops(device: torch.device) -> float | None:
    """Peak dense BF16 FLOP/s, or None where it is not known (then no MFU is reported)."""
    if device.type != "cuda":
        return None
    return peak_bf16_flops(torch.cuda.get_device_name(device))


TOO_LARGE = ("allocate memory", "Storage size calculation overflowed")
"""What torch says on a CPU where there is too little memory: its error has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has too little memory for what was asked of it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOO_LARGE)


def peak_memory_bytes(device: torch.device) -> int:
    """Most device memory allocated so far; on a CPU the process's peak resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def host_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *control_group_limits()])


STATM = Path("/proc/self/statm")
"""Linux's word for how many pages of memory this process has; the second number is of those that
are there."""


def free_memory_bytes(device: torch.device) -> int:
    """What this process may still take of the device's memory; on a CPU what it may have in all
    (`host_memory_bytes`) without what it has. Never below 0."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, host_memory_bytes() - _resident_bytes())


def _resident_bytes() -> int:
    """Memory that the process has now; where the system does not say, the most that it had."""
    try:
        pages = int(STATM.read_text().split()[1])
    except OSError:
        return peak_memory_bytes(torch.device("cpu"))
    return pages * os.sysconf("SC_PAGE_SIZE")


def control_group_limits(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Linux's limits of this process's groups and of those that they lie in, versions 1 and 2."""
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, name = line.split(":", 2)
        of_memory = "memory" in controllers.split(",")
        if controllers and not of_memory:
            continue
        top = root / "memory" if of_memory else root
        file = "memory.limit_in_bytes" if of_memory else "memory.max"
        own = top / name.lstrip("/")
        for folder in (own, *own.parents):
            limit = folder / file
            if limit.exists() and (text := limit.read_text().strip()).isdigit():
                yield int(text)
            if folder == top:
                break
