"""The rival's blocks, compiled for a server: steps have one shape, prompts many lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]

RECOMPILES = 64
"""Few are needed: the first block and the others, each for steps, for prompts from their beginning
and further on, and for sizes that happen to be equal. At torch's limit (8) a server would fail."""


def compile_served_blocks(model: nn.Module) -> None:
    """Compile a StackedLlama's blocks in place: for the shape of a step, and for prompts of any
    length, of which a server has graphs of a dozen. Layers share what is compiled."""
    torch._dynamo.config.recompile_limit = RECOMPILES
    for block in model.get_submodule("layers").children():
        block.forward = _by_rows(block.forward)


def _by_rows(forward: Forward) -> Forward:
    step = torch.compile(forward, fullgraph=True, dynamic=False)
    prompt = torch.compile(forward, fullgraph=True, dynamic=True)

    def of_rows(x_MD: Tensor, added_MD: Tensor | None, batch: int, *others: Any) -> Any:
        """A step has a row a sequence."""
        chosen = step if x_MD.shape[0] == batch else prompt
        return chosen(x_MD, added_MD, batch, *others)

    return of_rows
