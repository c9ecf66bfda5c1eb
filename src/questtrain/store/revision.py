"""Which commit of questtrain runs: what a record needs to be repeated."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, as 40 hex digits.

    None where git does not track this file: in a copy of the tree, or where the package lies
    installed inside another project's checkout.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("rev-parse", "HEAD")


def _git(*words: str) -> str | None:
    """What git says in this file's folder; None where it refuses or is not there."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
