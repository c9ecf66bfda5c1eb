"""Drawing the next token of many sequences at once, on the device.

A row's token is a function of its logits, its seed and how many tokens it has: of nothing else in
the batch, in whatever rows and of however many. That holds bit for bit because sums over the
vocabulary are of integers, and the order of equals is settled by the token's id.

Shape suffixes: B rows, V vocabulary, N alternatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from questtrain.inference.engine.requests import Sampling

WEIGHT_BITS = 40
"""A token's weight is its probability in units of 2^-40, rounded down."""

DIGIT_BITS = 10
"""The bits of a probability as fp32, at most those of 1.0, are three digits of 10 bits."""


How = Literal["greedy", "chance", "nucleus"]
"""What the rows of a batch ask for at most: the most likely token, a temperature, a top_p under 1.
Rows that ask for less get the same token."""


class Rows(NamedTuple):
    """How each row is drawn: ``seed`` and ``number`` int64 ``[B]``, the latter how many tokens the
    answer has so far; ``temperature`` (0: the most likely token) and ``top_p`` fp32 ``[B]``."""

    seed: Tensor
    number: Tensor
    temperature: Tensor
    top_p: Tensor


class Told(NamedTuple):
    """Tokens int64 ``[B]``, where wanted their log-probabilities fp32 ``[B]``, and the most likely
    tokens int64 ``[B, N]`` with theirs ``[B, N]``."""

    tokens: Tensor
    logprobs: Tensor | None = None
    top_tokens: Tensor | None = None
    top_logprobs: Tensor | None = None


def how_of(samplings: Iterable[Sampling]) -> How:
    """What draws for all of them."""
    hot = [sampling for sampling in samplings if sampling.temperature > 0]
    if any(sampling.top_p < 1 for sampling in hot):
        return "nucleus"
    return "chance" if hot else "greedy"


def draw(logits_BV: Tensor, rows: Rows, how: How) -> Tensor:
    """The next token of each row, int64 ``[B]``, of logits fp32."""
    tokens = logits_BV.argmax(-1)
    if how == "greedy":
        return tokens
    return torch.where(rows.temperature > 0, _by_chance(logits_BV, rows, how), tokens)


def tell(logits_BV: Tensor, tokens: Tensor, alternatives: int | None) -> Told:
    """What ``tokens`` int64 ``[B]`` were to the model, which gave the logits fp32: before
    temperature and top_p. ``alternatives``: how many most likely tokens to tell of, None for
    nothing."""
    if alternatives is None:
        return Told(tokens)
    logprobs_BV = logits_BV.log_softmax(-1)
    logprobs = logprobs_BV.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if not alternatives:
        return Told(tokens, logprobs)
    top = most_likely(logprobs_BV, min(alternatives, logits_BV.shape[-1]))
    return Told(tokens, logprobs, top, logprobs_BV.gather(-1, top))


def most_likely(x_BV: Tensor, count: int) -> Tensor:
    """The ``count`` tokens of the largest ``x`` fp32, of equals those of smaller ids first: int64
    ``[B, N]``."""
    bits = (x_BV + 0.0).view(torch.int32)  # no -0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    tokens = torch.arange(x_BV.shape[-1], device=x_BV.device)
    keys = (ordered << 32) | (0xFFFFFFFF - tokens)
    return 0xFFFFFFFF - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)


def _by_chance(logits_BV: Tensor, rows: Rows, how: How) -> Tensor:
    """Where `uniform` of the row falls among the weights, laid end to end."""
    heat = torch.where(rows.temperature > 0, rows.temperature, 1.0).unsqueeze(-1)
    below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)  # a small temperature makes it -inf
    p_BV = (below_BV / heat).softmax(-1)
    weights_BV = (p_BV * 2**WEIGHT_BITS).long()
    if how == "nucleus":
        needed = (weights_BV.sum(-1) * rows.top_p.double()).ceil().long().clamp(min=1)
        weights_BV = weights_BV * (p_BV >= _smallest_kept(p_BV, weights_BV, needed).unsqueeze(-1))
    ends_BV = weights_BV.cumsum(-1)
    at = (uniform(rows.seed, rows.number) * ends_BV[:, -1]).long().unsqueeze(-1)
    # A row of NaN, of which nobody asks, has no weights and falls off the end.
    return torch.searchsorted(ends_BV, at, right=True).squeeze(-1).clamp(max=p_BV.shape[-1] - 1)


def _smallest_kept(p_BV: Tensor, weights_BV: Tensor, needed: Tensor) -> Tensor:
    """The probability fp32 ``[B]`` of which and above weights sum to ``needed`` int64 ``[B]``.

    Found digit by digit of the probability's bits, which are ordered as it is, from sums of the
    weights that have each digit: no row is sorted.
    """
    size = 1 << DIGIT_BITS
    bits_BV = p_BV.view(torch.int32)
    found_B1, needed_B1 = torch.zeros_like(needed).unsqueeze(-1), needed.unsqueeze(-1)
    for shift in (2 * DIGIT_BITS, DIGIT_BITS, 0):
        digits_BV = (bits_BV >> shift) & (size - 1)
        among_BV = (bits_BV >> (shift + DIGIT_BITS)) == found_B1
        sums = weights_BV.new_zeros(len(needed), size)
        sums.scatter_add_(1, digits_BV.long(), weights_BV * among_BV)
        sums = sums.flip(1)  # the largest digit first
        ends = sums.cumsum(1)
        steps = (ends < needed_B1).sum(1, keepdim=True).clamp(max=size - 1)
        needed_B1 = needed_B1 - (ends - sums).gather(1, steps)
        found_B1 = (found_B1 << DIGIT_BITS) + (size - 1 - steps)
    return found_B1.squeeze(-1).int().view(torch.float32)


def uniform(seed: Tensor, number: Tensor) -> Tensor:
    """Numbers in [0, 1), float64 ``[B]``, of int64 seeds and counters: 53 bits of SplitMix64
    (Steele et al., OOPSLA 2014) at its ``number``-th step from a start that is the seed's hash."""
    gamma = _signed(0x9E3779B97F4A7C15)
    bits = _mixed(_mixed(seed + gamma) + (number + 1) * gamma)
    return (_shifted(bits, 11)).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, as if unsigned."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """64 bits as int64 has them."""
    return word - (1 << 64) if word >= 1 << 63 else word
