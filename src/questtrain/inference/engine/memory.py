"""Whether the keys and values of all sequences fit into memory, before any of it is taken.

A system hands out memory that it does not have, and ends the process when it is written to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from questtrain.device import free_memory_bytes
from questtrain.errors import UserError, counted
from questtrain.inference.engine.slots import slots_bytes
from questtrain.model import Llama, StackedLlama

KEPT = 10
"""One part in so many of the free memory is left for what prompts and steps compute."""


def check_memory(model: Llama | StackedLlama, max_batch_size: int, context: int) -> None:
    """UserError where the slots of a model that is loaded take more than is left of its device's
    memory: it says which ``context`` and which ``max_batch_size`` would fit."""
    needed = slots_bytes(model, max_batch_size, context)
    free = free_memory_bytes(model.embed_tokens.weight.device)
    there = free - free // KEPT
    if needed <= there:
        return
    shorter = _most(context, there, lambda tokens: slots_bytes(model, max_batch_size, tokens))
    fewer = _most(max_batch_size, there, lambda count: slots_bytes(model, count, context))
    found = {"context": shorter, "max_batch_size": fewer}
    fitting = " or ".join(f"{name}={most}" for name, most in found.items() if most)
    raise too_many(
        max_batch_size,
        context,
        f" they need {_gib(needed)} and may have {_gib(there)} of the {_gib(free)} that are free;"
        f" {fitting or 'a smaller model or another device'} would fit.",
    )


def too_many(max_batch_size: int, context: int, advice: str) -> UserError:
    """What to raise where so many sequences do not fit."""
    return UserError(
        f"the keys and values of {counted(max_batch_size, 'sequence', 'sequences')} of"
        f" {context:,} tokens do not fit into the device's memory beside the model:{advice}"
    )


def _most(wanted: int, there: int, bytes_of: Callable[[int], int]) -> int:
    """The largest number from 1 to ``wanted`` that takes no more than is ``there``; 0: none."""
    return bisect_right(range(1, wanted + 1), there, key=bytes_of)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.3g} GiB"
