"""Work that fails for a while, as a file system does."""

from __future__ import annotations

import os
from collections.abc import Callable


def failing(times: int, number: int, work: Callable) -> Callable:
    """``work``, whose first ``times`` calls raise OSError ``number``."""
    left = [times]

    def fails(*arguments, **keywords):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return work(*arguments, **keywords)

    return fails
