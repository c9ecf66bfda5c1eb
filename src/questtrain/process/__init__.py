"""This process and its children: their cores, what asks them to end, and how they start."""

from __future__ import annotations

import os


def available_cores() -> int:
    """CPU cores that this process may use: a container or a batch system may have limited them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
