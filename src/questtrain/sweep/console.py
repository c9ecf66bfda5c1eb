"""The terminal: what is printed there is shown as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no row is broken in a file."""
    on_terminal = literal_console()
    return on_terminal if on_terminal.is_terminal else literal_console(width=200)


def literal_console(stderr: bool = False, width: int | None = None) -> Console:
    """Names, paths and reasons are the user's: neither ``[old]`` nor ``:cat:`` is markup."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False)
