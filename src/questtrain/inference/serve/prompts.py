"""From a prompt to token ids as the model was trained on them, and whether they fit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from questtrain.config.ranges import shown
from questtrain.data import Tokenizer
from questtrain.data.tokenizer import EncodingError
from questtrain.inference.serve.errors import ApiError

LONG_TEXT = 4096
"""Characters from which on a text is encoded in a thread, so that nobody else has to wait."""

Prompt = str | list[int]


def prompts_of(value: Any) -> list[Prompt]:
    """The prompts that ``prompt`` may be: a text, token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if _are_ids(value):
        return [value]
    items = value if isinstance(value, list) else []
    if items and (all(isinstance(each, str) for each in items) or all(map(_are_ids, items))):
        return items
    if value == [] or [] in items:
        raise ApiError(
            400,
            "prompt holds an empty list, where texts or token ids belong; a new document is the"
            ' text "".',
            "prompt",
        )
    raise ApiError(
        400, "prompt must be a text, a list of texts, token ids, or a list of such lists.", "prompt"
    )


def _are_ids(value: Any) -> bool:
    """Whether this is a list of whole numbers, at least one."""
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


class Encoder:
    """Makes token ids of texts: BOS first, and what spells a special token stays text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, context: int) -> None:
        self.tokenizer, self.vocab_size, self.context = tokenizer, vocab_size, context

    async def ids(self, prompt: Prompt) -> list[int]:
        """A text's, or token ids as they were given, which are checked."""
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *await self.text_ids(prompt)]
        for token in prompt:
            if not 0 <= token < self.vocab_size:
                raise ApiError(
                    400,
                    f"prompt: token ids are 0 to {self.vocab_size - 1}, not {shown(token)}.",
                    "prompt",
                )
        return prompt

    async def text_ids(self, text: str) -> list[int]:
        """Without BOS."""
        try:
            if len(text) < LONG_TEXT:
                return self.tokenizer.encode(text)
            return await asyncio.to_thread(self.tokenizer.encode, text)
        except EncodingError as error:
            reason = f"the prompt cannot be encoded: {error.reason}"
            raise ApiError(400, reason, "prompt") from error

    def room(self, prompt: Sequence[int], max_tokens: int | None, default: int | None) -> int:
        """Tokens that may follow: ``max_tokens``, or where it is not given the ``default`` as far
        as the context has room (None: all of that)."""
        room = self.context - len(prompt)
        if max_tokens is None and room > 0:
            return room if default is None else min(default, room)
        if max_tokens is None or max_tokens > room:
            asked = "" if max_tokens is None else f" and {shown(max_tokens)} for the answer"
            raise ApiError(
                400,
                f"the context is {self.context} tokens, and you asked for"
                f" {len(prompt)} in the prompt{asked}.",
                "prompt" if room <= 0 else "max_tokens",
                "context_length_exceeded",
            )
        return max_tokens
