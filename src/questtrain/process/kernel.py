"""Which boot of which machine this is, and whose process numbers: as far as the system tells."""

from __future__ import annotations

import os
from pathlib import Path


def boot_id() -> str:
    """Of this boot of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """In which process numbers of this process count; empty where the system does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
