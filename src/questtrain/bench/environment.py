"""What a result must say about where it came from."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from typing import Any

import torch

from questtrain.device import cpu_instructions, cpu_name, device_name
from questtrain.kernels import cpu_library, extension
from questtrain.store.revision import git_revision
from questtrain.version import __version__


def environment(device: torch.device, command: str) -> dict[str, Any]:
    """Device, driver, versions, command and date (UTC); None for what is not known.

    ``kernels_source_hash`` is of the sources that the kernels serving ``device`` were built from
    (``python csrc/build.py --source-hash``; of the CPU's, of its own sources); None where the
    references serve. ``cpu_product`` is what does the products on a CPU (`cpu_library`).
    """
    return {
        "device": device_name(device),
        "cpu": cpu_name(),
        "cpu_instructions": cpu_instructions(),
        "cpu_product": cpu_library.serving_path() if cpu_library.serves() else "torch",
        "threads": torch.get_num_threads(),
        "device_memory_bytes": _memory(device),
        **_driver(device),
        "cuda_version": torch.version.cuda if device.type == "cuda" else None,
        "torch_version": torch.__version__,
        "python_version": sys.version.split()[0],
        "questtrain_version": __version__,
        "git_revision": git_revision(),
        "kernels_source_hash": _kernels_source_hash(device),
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _kernels_source_hash(device: torch.device) -> str | None:
    if device.type == "cpu":
        return cpu_library.load().source_hash if cpu_library.serves() else None
    return extension.load().source_hash if extension.serves(device) else None


def _memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def _driver(device: torch.device) -> dict[str, Any]:
    """The driver's version and the board's power limit in watts, which decides large products."""
    facts: dict[str, Any] = {"driver_version": None, "power_limit_watts": None}
    if device.type != "cuda":
        return facts
    uuid = torch.cuda.get_device_properties(device).uuid
    query = ("--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits")
    line = _output("nvidia-smi", f"--id=GPU-{uuid}", *query)
    version, separator, watts = (line or "").partition(", ")
    if separator:
        facts["driver_version"] = version
        facts["power_limit_watts"] = float(watts) if watts[:1].isdigit() else None
    return facts


def _output(*command: str) -> str | None:
    """What a program prints, or None where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
