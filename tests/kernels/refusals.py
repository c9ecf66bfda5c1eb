"""Wrong arguments of the ops, and the words in which every backend refuses them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.kernels.arguments import arguments

Refusal = tuple[dict[str, Any], str]
"""An op's arguments by name, one of them wrong, and the message as a regular expression."""


def names_of(op: str) -> list[str]:
    schema = getattr(torch.ops.questtrain, op).default._schema
    return [argument.name for argument in schema.arguments]


def named(op: str, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    """The op's arguments by name, some of them changed."""
    return {**dict(zip(names_of(op), arguments(op, device), strict=True)), **changes}


def scattered(value: Tensor) -> Tensor:
    """The same contents, every second element."""
    return torch.stack([value, value], dim=-1)[..., 0]


def wrong_tensors(op: str, device: str = "cpu") -> Iterator[Refusal]:
    """Each tensor of another shape, dtype, layout or device. The first one says where all should
    be."""
    good = named(op, device)
    several = sum(isinstance(value, Tensor) for value in good.values()) > 1
    place = "cuda:0" if device == "cuda" else "cpu"
    other = "cpu" if device == "cuda" else "meta"
    for index, (name, value) in enumerate(good.items()):
        if not isinstance(value, Tensor):
            continue
        about = rf"^{op}: {re.escape(name)} must "
        yield {**good, name: value.unsqueeze(0)}, about
        yield {**good, name: value.double()}, rf"{about}be .*, not torch.float64"
        if value.dim():
            yield {**good, name: scattered(value)}, f"{about}be contiguous"
        if several:
            elsewhere = f"{about}be on {place}, not {other}"
            if not index:
                elsewhere = f"^{op}: .+ must be on {other}, not {place}"
            yield {**good, name: value.to(other)}, elsewhere


def wrong_numbers(op: str, device: str = "cpu") -> Iterator[Refusal]:
    """Each number and dtype that says what a format or a result is."""
    good = named(op, device)
    few = r"of packed codes must be 2 to 16, not"
    every = "" if "_quantize_linear" in op else ", 256"
    levels = rf"must be one of \(2, 3, 4, 8, 16, 32, 64, 128{every}\), not"
    block = r"must be one of \(1, 16, 32, 64, 128, 256\), not"
    dtype = "must be bfloat16 or float16 or float32, not"
    table: list[tuple[str, Any, str]] = []
    for alpha in (0.0, -1.0, -0.1, -1e-320, float("-inf"), float("nan")):
        table.append(("alpha", alpha, f"must be positive, not {alpha}$"))
    table += [("block", wrong, f"{block} {wrong}$") for wrong in (0, 48, 512)]
    table += [("dtype", d, f"{dtype} {d}$") for d in (torch.float64, torch.int8, torch.bool)]
    if "alpha" in good:
        table += [("levels", 5, f"{levels} 5"), ("levels", 512, f"{levels} 512")]
    elif "levels" in good and op != "dequantize":  # whose codes of 8 bits may have any
        table += [("levels", wrong, f"{few} {wrong}$") for wrong in (1, 17, 32)]
    if op == "int8_offset_linear":
        sides = ("x_levels", "weight_levels")
        table += [(name, wrong, f"{levels} {wrong}$") for name in sides for wrong in (0, 5)]
    elif "weight_levels" in good:
        table += [("weight_levels", wrong, f"{few} {wrong}") for wrong in (1, 32)]
    for name, wrong, words in table:
        if name in good:
            yield {**good, name: wrong}, f"^{op}: {name} {words}"
    if good.get("packed") is False:  # of `unpack` it is the codes
        yield {**good, "levels": 32, "packed": True}, f"^{op}: levels {few} 32"
