"""Texts as token ids, as lm-evaluation-harness' Hugging Face models cut them.

A context begins with BOS, as trained; the trailing white space of a context goes to its
continuation; both are encoded as one text, of which the continuation is what the context's own ids
leave. Unlike there, the spelling of BOS inside a text is text, as it was in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from questtrain.data import Tokenizer


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """A context, with BOS, and a continuation in token ids for each pair of texts."""
    cut = [_at_the_word(context, continuation) for context, continuation in pairs]
    contexts = _encoded(tokenizer, (context for context, _ in cut))
    wholes = _encoded(tokenizer, (context + continuation for context, continuation in cut))
    found = []
    for context, continuation in cut:
        before, whole = contexts[context], wholes[context + continuation]
        after = whole[len(before) :]
        if continuation and not after:  # a merge over the border left it no id of its own
            after = tokenizer.encode(continuation)
        found.append(([tokenizer.bos_id, *before], after))
    return found


def encode_prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text in token ids, with BOS."""
    return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]


def _at_the_word(context: str, continuation: str) -> tuple[str, str]:
    """With the context's trailing white space at the continuation's start."""
    end = len(context.rstrip())
    return context[:end], context[end:] + continuation


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, list[int]]:
    """The ids of each different text."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, tokenizer.encode_batch(different), strict=True))
