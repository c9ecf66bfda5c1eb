"""The grammar of ``bits=``: number formats of weights and activations.

``w<W>a<A>`` with W and A in 1, 1.58, 2..8, 16; ``bf16`` is short for ``w16a16``. A format is
named by its bits and defined by its number of levels, which is an integer: 1.58 bits are
three levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from questtrain.errors import UserError, nearest

LEVELS = {"1": 2, "1.58": 3, "2": 4, "3": 8, "4": 16, "5": 32, "6": 64, "7": 128, "8": 256}
LABELS = (*LEVELS, "16")
ALIASES = {"bf16": "w16a16"}
COMMON = ("w1a1", "w1.58a1.58", "w2a2", "w3a3", "w4a4", "w8a8", "w4a16", "w2a16", "bf16")

_GRAMMAR = re.compile(r"w(?P<weight>[0-9.]+)a(?P<activation>[0-9.]+)")


@dataclass(frozen=True)
class NumberFormat:
    """How one operand is stored: a uniform integer grid, or 16-bit floats (not quantized)."""

    label: str

    @property
    def quantized(self) -> bool:
        return self.label != "16"

    @property
    def levels(self) -> int:
        """Number of grid values, 2 to 256."""
        return LEVELS[self.label]

    @property
    def bits(self) -> float:
        """Nominal bits per value: the P of the scaling law."""
        return float(self.label)

    @property
    def storage_bits(self) -> int:
        """Bits that one packed value occupies: 1, 2, 4, 8 or 16."""
        return next(size for size in (1, 2, 4, 8, 16) if size >= self.bits)


@dataclass(frozen=True)
class Bits:
    """A parsed ``bits=`` value."""

    weight: NumberFormat
    activation: NumberFormat

    @property
    def quantized(self) -> bool:
        return self.weight.quantized or self.activation.quantized

    def __str__(self) -> str:
        return f"w{self.weight.label}a{self.activation.label}" if self.quantized else "bf16"


def parse_bits(text: str) -> Bits:
    """Parse ``w4a4``, ``w2a16``, ``w1.58a8``, ``bf16``; UserError names the nearest valid one."""
    spelled = ALIASES.get(text.lower(), text.lower())
    match = _GRAMMAR.fullmatch(spelled)
    if match is None:
        close = nearest(text, COMMON) or "w4a4"
        raise UserError(
            f"unknown bits {text!r}: write w<W>a<A> with W and A in {', '.join(LABELS)},"
            f" or bf16. Did you mean {close!r}?"
        )
    for label in match.groups():
        if label not in LABELS:
            suggestion = f"w{_closest(match['weight'])}a{_closest(match['activation'])}"
            raise UserError(
                f"unknown bits {text!r}: {label} bits is not a format; choose W and A from"
                f" {', '.join(LABELS)}. Did you mean {suggestion!r}?"
            )
    return Bits(NumberFormat(match["weight"]), NumberFormat(match["activation"]))


def _closest(label: str) -> str:
    """The format whose number of bits is closest; w4 where ``label`` is no number."""
    try:
        wanted = float(label)
    except ValueError:
        wanted = 4.0
    return min(LABELS, key=lambda known: abs(float(known) - wanted))
