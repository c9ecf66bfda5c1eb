"""What commands print: JSON, and plain tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def print_json(value: Any) -> None:
    """What ``--json`` prints."""
    print(json.dumps(value, indent=2))


def plain_table(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table without lines: columns of text with these headings, then columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def number_text(value: float) -> str:
    """Four decimals, and powers of ten for what is large."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"
