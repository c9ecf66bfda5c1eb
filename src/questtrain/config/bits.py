"""The grammar of ``bits=``: number formats of weights and activations.

``w<W>a<A>`` with W and A in 1, 1.58, 2..8, fp4, 16, and ``s24`` after W for 2:4 sparsity of pairs:
``w4a4``, ``w2a16``, ``wfp4afp4``, ``w4s24a4``. ``bf16`` is short for ``w16a16``, ``fp4`` for
``wfp4afp4``. An integer format is named by its bits and defined by its number of levels, which is
an integer: 1.58 bits are three levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from questtrain.errors import UserError, nearest

LEVELS = {"1": 2, "1.58": 3, "2": 4, "3": 8, "4": 16, "5": 32, "6": 64, "7": 128, "8": 256}
LABELS = (*LEVELS, "fp4", "16")
ALIASES = {"bf16": "w16a16", "fp4": "wfp4afp4"}
COMMON = (
    "w1a1",
    "w1.58a1.58",
    "w2a2",
    "w3a3",
    "w4a4",
    "w8a8",
    "w4a16",
    "w2a16",
    "w4s24a4",
    "fp4",
    "bf16",
)

_GRAMMAR = re.compile(r"w(?P<weight>fp4|[0-9.]+)(?P<sparse>s24)?a(?P<activation>fp4|[0-9.]+)")


@dataclass(frozen=True)
class NumberFormat:
    """How one operand is stored: an integer grid, FP4 (E2M1), or 16-bit floats (not quantized).

    ``sparse``: two of each four pairs of values are zero (2:4 sparsity of pairs).
    """

    label: str
    sparse: bool = False

    @property
    def kind(self) -> str:
        """``int``, ``fp4`` or ``bf16``."""
        return {"16": "bf16", "fp4": "fp4"}.get(self.label, "int")

    @property
    def quantized(self) -> bool:
        """Whether an operand in this format is rounded to few bits."""
        return self.kind != "bf16"

    @property
    def levels(self) -> int:
        """Number of values of an integer format's centred grid, 2 to 256."""
        return LEVELS[self.label]

    def grid_levels(self, grid: str) -> int:
        """Number of values on a ``centred`` grid, or on the ``int`` one that holds zero: one less
        where the format's own number is even."""
        return self.levels - (grid == "int" and self.levels % 2 == 0)

    @property
    def bits(self) -> float:
        """Nominal bits of a value that is not zero: the P of the scaling law."""
        return 4.0 if self.kind == "fp4" else float(self.label)

    @property
    def storage_bits(self) -> float:
        """Bits that one packed value occupies: 1, 2, 4, 8 or 16.

        Sparse, half of them and half a bit for the positions: each 8 values keep 2 pairs, each
        named by 2 bits. INT4 with 2:4 sparsity takes 2.5.
        """
        dense = next(size for size in (1, 2, 4, 8, 16) if size >= self.bits)
        return dense / 2 + 0.5 if self.sparse else dense

    def __str__(self) -> str:
        return f"{self.label}s24" if self.sparse else self.label


@dataclass(frozen=True)
class Bits:
    """A parsed ``bits=`` value."""

    weight: NumberFormat
    activation: NumberFormat

    @property
    def quantized(self) -> bool:
        """Whether weights, activations or both are quantized."""
        return self.weight.quantized or self.activation.quantized

    def __str__(self) -> str:
        name = f"w{self.weight}a{self.activation}"
        return next((alias for alias, spelled in ALIASES.items() if spelled == name), name)


def parse_bits(text: str) -> Bits:
    """Parse ``w4a4``, ``w2a16``, ``w4s24a4``, ``fp4``; UserError names the nearest valid one."""
    spelled = ALIASES.get(text.lower(), text.lower())
    match = _GRAMMAR.fullmatch(spelled)
    if match is None:
        raise UserError(
            f"unknown bits {text!r}: write w<W>a<A> with W and A in {', '.join(LABELS)}, s24 after"
            f" W for 2:4 sparsity, or bf16 or fp4. Did you mean {_similar(text)!r}?"
        )
    weight, activation, sparse = match["weight"], match["activation"], bool(match["sparse"])
    wrong = [label for label in (weight, activation) if label not in LABELS]
    if wrong or (sparse and weight == "16"):
        reason = (
            f"{wrong[0]} bits is not a format; choose W and A from {', '.join(LABELS)}."
            if wrong
            else "2:4 sparsity is of quantized weights."
        )
        close_weight, close_activation = _closest(weight), _closest(activation)
        if sparse and close_weight == "16":
            close_weight = "4"
        close = Bits(NumberFormat(close_weight, sparse), NumberFormat(close_activation))
        raise UserError(f"unknown bits {text!r}: {reason} Did you mean '{close}'?")
    return Bits(NumberFormat(weight, sparse), NumberFormat(activation))


def _similar(text: str) -> str:
    """The common format that is spelled most like ``text``; a number stands for both operands."""
    if text in LEVELS:
        return f"w{text}a{text}"
    return nearest(text, COMMON) or "w4a4"


def _closest(label: str) -> str:
    """The format whose number of bits is closest; w4 where ``label`` is no number."""
    if label in LABELS:
        return label
    try:
        wanted = float(label)
    except ValueError:
        wanted = 4.0
    numbers = [known for known in LABELS if known != "fp4"]
    return min(numbers, key=lambda known: abs(float(known) - wanted))
