"""What is told of tokens, in the two shapes that the API has for it."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from questtrain.inference.engine.requests import Alternative, TokenInfo

LOWEST = -9999.0
"""JSON knows no infinity: the logarithm of a probability of 0."""


class TokenNames:
    """What a token is called: its text; ``bytes:\\\\xe2`` of a part of a character, as OpenAI does;
    its spelling if it is a special one."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = {token: name for name, token in special.items()}

    def name(self, info: TokenInfo | Alternative) -> str:
        if info.bytes is None:
            return self._special.get(info.token, info.text)
        try:
            return info.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in info.bytes)


class CompletionLogprobs:
    """``logprobs`` of a completion: lists over its tokens. ``text_offset`` is where a token begins
    in the choice's text, over all events of a stream."""

    def __init__(self, names: TokenNames, alternatives: int) -> None:
        self._names, self._alternatives = names, alternatives
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._offset = 0

    def of(self, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
        """The next tokens'."""
        offsets = []
        for info in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(info.bytes or b""))
        return {
            "tokens": [self._names.name(info) for info in tokens],
            "token_logprobs": [_finite(info.logprob) for info in tokens],
            "top_logprobs": [self._top(info) for info in tokens] if self._alternatives else None,
            "text_offset": offsets,
        }

    def _top(self, info: TokenInfo) -> dict[str, float | None] | None:
        """The alternatives, and the token itself where it is none of them; None for the first."""
        if info.logprob is None:
            return None
        top = {self._names.name(each): _finite(each.logprob) for each in info.top}
        top.setdefault(self._names.name(info), _finite(info.logprob))
        return top


def chat_logprobs(names: TokenNames, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    """``logprobs`` of a chat's choice: an object for each token."""

    def told(each: TokenInfo | Alternative) -> dict[str, Any]:
        content = None if each.bytes is None else list(each.bytes)
        return {"token": names.name(each), "logprob": _finite(each.logprob), "bytes": content}

    return {
        "content": [{**told(info), "top_logprobs": [*map(told, info.top)]} for info in tokens],
        "refusal": None,
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST)
