"""What is asked of an `Engine` and what it answers: plain data, which goes from a process to
another. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Finish = Literal["stop", "length", "error"]
"""How a request ended: by a stop string or the document's end; by ``max_tokens`` or the end of the
context; by an error of its own, such as too little memory for its prompt."""


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen.

    ``max_tokens`` may be 0: the prompt is read, for its log-probabilities, and nothing follows.
    ``temperature`` 0 takes the most likely token; ``top_p`` in (0, 1] keeps the fewest tokens whose
    probability reaches it, equally likely ones together. The token drawn is a function of the
    model, the tokens so far, ``seed`` (any int, of which the low 64 bits count) and these numbers.
    ``logprobs``: how many alternatives to tell for each token, 0 for the chosen one's
    log-probability alone, None for none. ``prompt_logprobs``: the same of the prompt's tokens, for
    as many alternatives. A generation ends before the first of the ``stop`` strings. ValueError for
    numbers out of their range, and for an empty stop string.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be 0 or more, not {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0 on, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be over 0 and at most 1, not {self.top_p}")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs must be None or 0 and more, not {self.logprobs}")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True)
class Request:
    """One prompt to go on from: token ids as the model was trained on them, BOS first. ``id`` is
    the caller's, and no other request of the engine's at the time has it."""

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling


class Alternative(NamedTuple):
    """A token that could have stood in a place; see `TokenInfo`."""

    token: int
    text: str
    logprob: float
    bytes: bytes | None


@dataclass(frozen=True)
class TokenInfo:
    """A token of prompt or answer, of which more is told.

    ``text`` is the token's alone, with U+FFFD where it is a part of a character; ``bytes`` are its
    UTF-8, None for a token that stands for no text (BOS, …). ``logprob`` is the natural logarithm
    of its probability by the model as it is, before temperature and top_p; None for the first token
    of a prompt. ``top`` are the most likely tokens of its place, most likely first, as many as were
    asked for; the token itself may be one of them.
    """

    token: int
    text: str
    bytes: bytes | None
    logprob: float | None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What became known of request ``id`` in a step.

    ``text`` goes on from the last Delta's: whole characters that can no longer be part of a stop
    string. ``generated`` counts the tokens that the model gave since the last Delta, those of a
    stop string and the document's end included; text may come later than its tokens are counted.
    ``tokens`` tells of each token of ``text`` where ``logprobs`` were asked for, in the Delta whose
    text has the end of it, and of the document's end: none of what begins in a stop string.
    ``prompt`` tells of all tokens of the prompt, in the request's first Delta, where
    ``prompt_logprobs`` were asked for. ``finish`` is set in the last Delta, which there is of each
    request but a cancelled one; ``error`` says what went wrong where it is "error".
    """

    id: int
    text: str = ""
    generated: int = 0
    tokens: tuple[TokenInfo, ...] = ()
    prompt: tuple[TokenInfo, ...] = ()
    finish: Finish | None = None
    error: str | None = None
