"""Which layers stay unquantized: shell-style patterns of dotted module names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence


def is_skipped(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module's dotted name matches one of the shell-style ``patterns``."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
