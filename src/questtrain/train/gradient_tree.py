"""Sums whose order is settled: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), whoever has which part.

An addition of two fp32 numbers is the same in either order, so that what counts is which partial
sums there are. Of a number of parts that is a power of two, a process that has a whole branch sums
it by itself, and processes sum branches as `questtrain.train.parallel.World.tree_all_reduce` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TreeSum:
    """The sum of lists of tensors, one after the other; what is added is overwritten.

    Of n lists so far it holds one for each bit of n that is set, the sum of that many.
    """

    def __init__(self) -> None:
        self._branches: list[tuple[int, list[Tensor]]] = []  # how many were summed; fewer and fewer

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """The next part."""
        count, added = 1, list(tensors)
        while self._branches and self._branches[-1][0] == count:
            _, before = self._branches.pop()
            torch._foreach_add_(before, added)
            count, added = 2 * count, before
        self._branches.append((count, added))

    @property
    def total(self) -> list[Tensor]:
        """The sum of all parts, whose number is a power of two."""
        ((_, total),) = self._branches
        return total
