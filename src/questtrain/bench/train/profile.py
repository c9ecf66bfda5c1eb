"""Where the time of a step goes: its kernels, by name and by what they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

RULES = (
    ("copies", "Memcpy"),
    ("copies", "Memset"),
    ("elementwise", "triton_"),  # the compiler's names hold those of the operations it fused
    ("optimizer", "multi_tensor"),  # torch's AdamW, and the norm for clipping
    ("optimizer", "adamw"),
    ("attention", "flash"),
    ("attention", "fmha"),
    ("attention", "sdpa"),
    ("attention", "cudnn::fusion"),
    ("INT8 products", "cutlass", "GemmUniversal"),  # ours; torch's own are nvjet and cublas
    ("INT8 products", "imma"),
    ("our kernels", "questtrain"),
    ("elementwise", "at::native"),
    ("BF16 products", "gemm"),
    ("BF16 products", "nvjet"),
    ("BF16 products", "cutlass"),
    ("BF16 products", "cublas"),
)
"""A category and what a kernel's name must hold, all of it; the first rule that fits decides."""

CATEGORIES = (
    "BF16 products",
    "INT8 products",
    "our kernels",
    "attention",
    "optimizer",
    "elementwise",
    "copies",
    "other",
)
MOST_KERNELS = 25


class Kernel(NamedTuple):
    """One execution on the device, in microseconds."""

    name: str
    start: float
    end: float


def profile_step(step: Callable[[], object], device: torch.device) -> dict[str, Any] | None:
    """`summary` of one call; None where the profiler sees no kernel."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize(device)
    kernels = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return summary(kernels) if kernels else None


def summary(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Microseconds: of each category; ``busy``, with a kernel or more on the device; ``span``, from
    the first kernel to the last. ``kernels``: the names that took longest, with their ``count`` and
    their ``share`` of all kernels' time."""
    counts: dict[str, int] = {}
    taken: dict[str, float] = {}
    for name, start, end in kernels:
        counts[name] = counts.get(name, 0) + 1
        taken[name] = taken.get(name, 0.0) + end - start
    total = sum(taken.values())
    categories = dict.fromkeys(CATEGORIES, 0.0)
    for name, microseconds in taken.items():
        categories[category(name)] += microseconds
    longest = sorted(taken, key=lambda name: -taken[name])[:MOST_KERNELS]
    return {
        "categories": categories,
        "busy": _union(kernels),
        "span": max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels),
        "kernels": [
            {
                "name": name,
                "category": category(name),
                "count": counts[name],
                "microseconds": taken[name],
                "share": taken[name] / total,
            }
            for name in longest
        ],
    }


def category(name: str) -> str:
    """What a kernel of this name is for, by `RULES`."""
    fitting = (what for what, *parts in RULES if all(part in name for part in parts))
    return next(fitting, "other")


def _union(kernels: Iterable[Kernel]) -> float:
    """The length of the union of intervals."""
    busy, reached = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        busy += max(0.0, kernel.end - max(kernel.start, reached))
        reached = max(reached, kernel.end)
    return busy
