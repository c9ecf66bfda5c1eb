"""The device a run trains on: its choice, its name, its memory, its peak arithmetic rate."""

from __future__ import annotations

import platform
import resource
import sys

import torch

from questtrain.errors import UserError

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
}
"""Dense BF16 tensor-core rates by (a part of) the device's name, from the vendors' data sheets."""


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


def device_name(device: torch.device) -> str:
    """What a run record calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


def peak_flops(device: torch.device) -> float | None:
    """Peak dense BF16 FLOP/s, or None where it is not known (then no MFU is reported)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAK_BF16_FLOPS.items() if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most device memory allocated so far; on a CPU the process's peak resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
