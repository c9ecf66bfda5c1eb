"""Sampling from a trained model, a token at a time, with a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from questtrain.inference.decode import Decoder
from questtrain.inference.load import TrainedModel


@torch.inference_mode()
def generate_tokens(
    trained: TrainedModel,
    prompt: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` token ids that follow ``prompt``; stops at a document's end.

    The context is the trained sequence length: when it is full, its older half is dropped.
    """
    window = trained.config.sequence_length
    device = next(trained.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    seen = prompt[-(window - 1) :]
    decoder = Decoder(trained.model, 1, min(window, len(seen) + max_new_tokens - 1))
    starts = True
    for _ in range(max_new_tokens):
        if len(seen) > window:
            seen, starts = seen[-(window // 2) :], True
        if starts:
            logits_1V = decoder.prefill(torch.tensor([seen], device=device))
        else:
            logits_1V = decoder.step(torch.tensor(seen[-1:], device=device))
        token = sample(logits_1V[0].float(), temperature, top_p, generator)
        if token == trained.tokenizer.bos_id:
            return
        yield token
        seen, starts = [*seen, token], False


def sample(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Nucleus sampling; temperature 0 takes the most likely token."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = (logits_V / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def generate_text(
    trained: TrainedModel,
    prompt: str,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` in pieces of text, as they become decodable."""
    tokenizer = trained.tokenizer
    start = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    tokens: list[int] = []
    shown = ""
    prefix = tokenizer.decode(start[1:])
    for token in generate_tokens(trained, start, max_new_tokens, temperature, top_p, seed):
        tokens.append(token)
        text = tokenizer.decode(start[1:] + tokens)[len(prefix) :]
        if text.endswith("\ufffd"):
            continue
        yield text[len(shown) :]
        shown = text
