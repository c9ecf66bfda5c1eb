"""The law put to use: which precision, size and token count is best for a budget.

Memory is that of the blocks' weights, N·P bits; training takes 6·N·D FLOPs at every precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from questtrain.errors import UserError, unknown
from questtrain.scaling.law import Law
from questtrain.scaling.precision import canonical_label, nearest_label, weight_bits

FLOPS_PER_PARAM_TOKEN = 6.0
REFERENCE_BITS = 16


@dataclass(frozen=True)
class Budget:
    """Upper limits: bytes of the weights, training tokens, training FLOPs; None is no limit."""

    memory_bytes: float | None = None
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Choice:
    """The best model of one precision within a budget.

    ``low`` and ``high`` bound the loss at the law's confidence, ``best_share`` is the fraction of
    bootstrap samples in which this precision wins; None where the law has no samples.
    """

    precision: str
    bits: float
    params: float
    tokens: float
    loss: float
    memory_bytes: float
    flops: float
    low: float | None = None
    high: float | None = None
    best_share: float | None = None


def plan(law: Law, budget: Budget, precisions: Sequence[str] = ()) -> list[Choice]:
    """The best model of each of ``precisions``, lowest loss first; by default of all that the law
    knows and whose weights' bits are known. A format may be spelled as in training: w4a4 is 4.

    UserError: a budget that is no positive number, or bounds nothing; an unknown precision.
    """
    _check(budget)
    bits = _bits(law)
    labels = dict.fromkeys(_known_label(label, bits) for label in precisions)
    choices = [_best(law, label, bits[label], budget) for label in labels or bits]
    if law.draws and law.confidence is not None:
        choices = _with_intervals(law, law.confidence, choices)
    return sorted(choices, key=lambda choice: choice.loss)


def iso_memory(law: Law, memory_bytes: float, ratios: Sequence[float]) -> dict[str, list[float]]:
    """Loss of each precision in the same memory and training compute (figure 14).

    ``ratios`` are tokens to parameters of the 16-bit model, which has N = memory/2 parameters; at
    P bits there are N·16/P parameters and D·P/16 tokens.
    """
    reference = 8 * memory_bytes / REFERENCE_BITS
    tokens = reference * np.asarray(ratios, dtype=np.float64)
    curves = {}
    for label, bits in _bits(law).items():
        factor = REFERENCE_BITS / bits
        curves[label] = [float(x) for x in law.loss(reference * factor, tokens / factor, label)]
    return curves


def extrapolation(law: Law, choice: Choice) -> str | None:
    """A remark where a choice lies outside the law's data; None inside."""
    parts = []
    for what, value, known in (
        ("parameters", choice.params, law.params_range),
        ("tokens", choice.tokens, law.tokens_range),
    ):
        if known is not None and not known[0] / 1.05 <= value <= known[1] * 1.05:
            edge = known[1] if value > known[1] else known[0]
            side = "the most" if value > known[1] else "the fewest"
            parts.append(f"{value / edge:.3g} times {side} {what} of its data")
    return " and ".join(parts) or None


def _check(budget: Budget) -> None:
    for key in ("memory_bytes", "tokens", "flops"):
        value = getattr(budget, key)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{key.removesuffix('_bytes')}={value} must be a positive number.")
    if budget.flops is None and (budget.memory_bytes is None or budget.tokens is None):
        raise UserError("give memory=… and tokens=… (or flops=… with or without either).")


def _bits(law: Law) -> dict[str, float]:
    known = {label: weight_bits(label) for label in law.precisions}
    return {label: bits for label, bits in known.items() if bits is not None}


def _known_label(text: str, known: Iterable[str]) -> str:
    """The law's label of a precision; UserError with the nearest format if it has none."""
    label = text if text in known else canonical_label(text)
    if label in known:
        return label
    close = nearest_label(label, known)
    if close is None:
        raise unknown("precision of this law", text, known)
    raise UserError(
        f"unknown precision of this law {text!r}: choose from {', '.join(known)}. Did you mean"
        f" {close!r}?"
    )


def _best(law: Law, label: str, bits: float, budget: Budget) -> Choice:
    """The model of lowest loss at one precision.

    Up to the size at which the FLOPs allow just the token limit, more parameters are always
    better; beyond it each costs tokens, and the optimum of α·A/(N·eff)^α = β·B/D^β decides.
    """
    params = math.inf if budget.memory_bytes is None else 8 * budget.memory_bytes / bits
    tokens = math.inf if budget.tokens is None else budget.tokens
    if budget.flops is not None:
        pairs = budget.flops / FLOPS_PER_PARAM_TOKEN  # N·D
        params = min(params, max(_compute_optimal(law, label, pairs), pairs / tokens))
        tokens = min(tokens, pairs / params)
    return Choice(
        precision=label,
        bits=bits,
        params=params,
        tokens=tokens,
        loss=float(law.loss(params, tokens, label)),
        memory_bytes=params * bits / 8,
        flops=FLOPS_PER_PARAM_TOKEN * params * tokens,
    )


def _compute_optimal(law: Law, label: str, pairs: float) -> float:
    """N that minimises the loss at N·D = pairs: both terms fall at the same rate there."""
    alpha, beta = law.alpha_of.get(label, law.alpha).value, law.beta.value
    size_term = float(law.loss(1.0, math.inf, label)) - law.E.value
    ratio = alpha * size_term / (beta * law.B.value)
    return float((ratio * pairs**beta) ** (1 / (alpha + beta)))


def _with_intervals(law: Law, confidence: float, choices: Sequence[Choice]) -> list[Choice]:
    """The choices with what the law's bootstrap samples say of their losses."""
    draws = np.array([law.loss_draws(c.params, c.tokens, c.precision) for c in choices])
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=1)
    shares = np.bincount(draws.argmin(axis=0), minlength=len(choices)) / draws.shape[1]
    return [
        replace(choice, low=float(low[i]), high=float(high[i]), best_share=float(shares[i]))
        for i, choice in enumerate(choices)
    ]
