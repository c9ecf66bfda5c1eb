"""The P of the scaling law: a label for how a run was quantized, and the bits of its weights.

``4`` is an INT4 run of QuEST (``w4a4``), ``16`` an unquantized one, the reference; other formats
keep their name (``w4a16``, ``fp4``, ``w4s24a4``), and another method stands behind: ``4-lsq``,
``4-quest-noht``. A run that switched its formats is of a method of its own, whatever it ended in:
``4-bf16@0.6`` trained in bf16 for 0.6 of its steps, ``4-lsq-w8a8@0.5`` in w8a8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from questtrain.config import Bits, parse_bits
from questtrain.config.bits import LEVELS
from questtrain.errors import UserError

REFERENCE = "16"
"""The precision whose eff is 1 by definition: BF16."""

DEFAULT_METHOD = "quest"

OTHER_SPARSITY, OTHER_METHOD = 16, 64
"""How many bits apart two formats are for it."""

METHODS = {"clip": "Clip", "ste": "STE", "lsq": "LSQ", "lsq-plus": "LSQ+", "pact": "PACT"}
"""How readers know the other methods."""


def precision_label(
    bits: str, method: str | None = None, switch: tuple[str, float] | None = None
) -> str:
    """``w4a4`` → ``4``, ``bf16`` → ``16``, ``w4a16`` as it is; ``-METHOD`` unless it is QuEST.
    ``switch`` is from which bits a run switched, and at which share of its steps."""
    if switch is not None:
        before = "" if method in (None, DEFAULT_METHOD, "none") else f"{method}-"
        return precision_label(bits, f"{before}{switch[0]}@{switch[1]:g}")
    parsed = parse_bits(bits)
    if not parsed.quantized and not _switches(method):
        return REFERENCE
    label = str(parsed)
    if parsed.weight == parsed.activation and parsed.weight.label in (*LEVELS, REFERENCE):
        label = parsed.weight.label
    return label if method in (None, DEFAULT_METHOD, "none") else f"{label}-{method}"


def _switches(method: str | None) -> bool:
    """Whether it is that of a run that switched its formats."""
    return method is not None and "@" in method


def method_and_switch(method: str) -> tuple[str, str | None]:
    """A label's method, and from what its run switched, if it did: ``lsq-bf16@0.6`` is ``lsq`` and
    ``bf16@0.6``."""
    if not _switches(method):
        return method, None
    before, _, switch = method.rpartition("-")
    return before or DEFAULT_METHOD, switch


def label_of(spelled: object) -> str:
    """A label as `precision_label` writes it, from any spelling of a number or a format: ``16.0``,
    ``bf16`` and ``W16A16`` are ``16``, ``4.0``, ``w4a4`` and ``W4.0A4.0`` are ``4``, ``W4A4-LSQ``
    is ``4-lsq``. A label of the user's own stays as it is."""
    text = str(spelled).strip()
    if _number(text) is not None:
        text = f"{_number(text):g}"
    bits, _, method = text.partition("-")
    bits = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):g}", bits.lower())
    named = split_label(bits)
    if named is None or text.endswith("-"):
        return text
    known = _switches(method) or method.lower() in (DEFAULT_METHOD, "quest-noht", *METHODS)
    return precision_label(str(named[0]), method.lower() if known else method or None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def split_label(label: str) -> tuple[Bits, str] | None:
    """The format and the method that a label names; None for a label of the user's own."""
    spelled, _, method = label.partition("-")
    try:
        bits = parse_bits(f"w{spelled}a{spelled}" if spelled in (*LEVELS, "16") else spelled)
    except UserError:
        return None
    return bits, method or DEFAULT_METHOD


def integer_kind(label: str) -> tuple[str, str]:
    """Method and bits of integers of equal weights and activations: ``("lsq", "4")``; of the
    reference ``("none", "16")``; empty texts for other formats."""
    if label == REFERENCE:
        return "none", label
    named = split_label(label)
    if named is None or named[0].weight != named[0].activation or named[0].weight.kind != "int":
        return "", ""
    return named[1], named[0].weight.label


def canonical_label(text: str) -> str:
    """``w4a4`` → ``4``, ``bf16`` → ``16``; text that spells no format stays as it is."""
    named = split_label(text)
    return text if named is None else precision_label(str(named[0]), named[1])


def nearest_label(label: str, known: Iterable[str]) -> str | None:
    """The known label whose format is closest by its bits, of the same method if there is one; None
    where ``label`` names no format."""
    named = split_label(label)
    if named is None:
        return None

    def distance(other: str) -> float:
        (bits, method), (its_bits, its_method) = named, split_label(other) or named
        apart = abs(bits.weight.bits - its_bits.weight.bits)
        apart += abs(bits.activation.bits - its_bits.activation.bits)
        apart += OTHER_SPARSITY * (bits.weight.sparse != its_bits.weight.sparse)
        return apart + OTHER_METHOD * (method != its_method)

    return min(filter(split_label, known), key=distance, default=None)


def weight_bits(label: str) -> float | None:
    """Bits that one weight costs: 4 for ``4``, ``w4a16`` and ``fp4``, 2.5 for ``w4s24a4``; None
    where the label does not say."""
    named = split_label(label)
    if named is None:
        return None
    weight = named[0].weight
    return weight.bits / 2 + 0.5 if weight.sparse else weight.bits


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Each label once: by method (QuEST first), then by bits, own labels last."""

    def order(label: str) -> tuple[bool, bool, str, float, str]:
        named, bits = split_label(label), weight_bits(label)
        method = "" if named is None else named[1]
        plain = named is not None and named[0].weight == named[0].activation
        return named is None, method != DEFAULT_METHOD, method, bits or 0.0, f"{not plain}{label}"

    return sorted(set(labels), key=order)


def label_text(label: str) -> str:
    """What figures call a precision: ``W4A4``, ``BF16``, ``W4A16``, ``FP4``, ``W4A4 LSQ``, ``W4A4
    after BF16@0.6``."""
    named = split_label(label)
    if named is None:
        return label
    bits, method = named
    text = str(bits).upper()
    if bits.weight.sparse:
        text = f"INT{bits.weight.label} 2:4"
    names = {DEFAULT_METHOD: "", "quest-noht": " without Hadamard"}
    method, switch = method_and_switch(method)
    text += names.get(method, f" {METHODS.get(method, method.upper())}")
    return text if switch is None else f"{text} after {switch.upper()}"
