"""How near a runtime can come to a model that quantizes its activations: a value on the border of
two codes takes the one or the other by the order of a sum, and then moves by a whole step."""

from __future__ import annotations

import torch

from questtrain.inference.export.format import Bound
from questtrain.inference.export.passages import prompts
from questtrain.inference.export.source import Source

LEAST_MEDIAN, LEAST_DISAGREEMENT = 1e-5, 0.01
"""What is allowed to activations of few bits however little the trained model's own logits move."""


def bound_of_codes(source: Source, dtype: torch.dtype = torch.float32) -> Bound:
    """No largest difference; the median and the argmax within four times what the trained model
    itself moves by (`rounding_noise`)."""
    difference, disagreement = rounding_noise(source, dtype)
    return Bound(
        largest=None,
        median=max(LEAST_MEDIAN, 4 * difference),
        argmax=1 - max(LEAST_DISAGREEMENT, 4 * disagreement),
    )


@torch.no_grad()
def rounding_noise(source: Source, dtype: torch.dtype) -> tuple[float, float]:
    """How far the trained model's logits, on the certificate's prompts, are from those that it
    gives in float64, its embedding and head rounded to ``dtype``: the mean difference, and the
    share of positions with another most likely token. That is what the order of sums decides."""
    model, exact = source.model(packed=False), source.model(packed=False)
    for name, parameter in exact.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            parameter.copy_(parameter.to(dtype))
    exact.double()
    differences, other = [], []
    for tokens in prompts(source.tokenizer, source.config.sequence_length):
        ours, theirs = model(tokens[None])[0], exact(tokens[None])[0]
        differences.append((ours - theirs).abs().mean(-1))
        other.append(ours.argmax(-1) != theirs.argmax(-1))
    return float(torch.cat(differences).mean()), float(torch.cat(other).double().mean())
