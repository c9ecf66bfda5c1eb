"""``POST /v1/completions``."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request

from questtrain.inference.engine.requests import Delta
from questtrain.inference.serve.bodies import CompletionBody
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.logprobs import CompletionLogprobs, TokenNames
from questtrain.inference.serve.prompts import Prompt, prompts_of
from questtrain.inference.serve.reply import Reply
from questtrain.inference.serve.service import Service, seed_of

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
"""Of the API, where a request does not say."""


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Reply:
    """Go on from prompts; the choice ``n·i + j`` is the j-th answer to prompt i."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    prompts, n = prompts_of(body.prompt), body.n or 1
    service.check_room(n * len(prompts))
    ids = [await service.encoder.ids(prompt) for prompt in prompts]
    seed, asked = seed_of(body.seed), []
    logprobs, of_prompt = body.logprobs, bool(body.echo) and body.logprobs is not None
    for prompt in ids:
        room = service.encoder.room(prompt, body.max_tokens, DEFAULT_MAX_TOKENS)
        if room == 0 and not body.echo:
            raise ApiError(400, "max_tokens: 0 gives nothing but with echo=true.", "max_tokens")
        for choice in range(n):
            asked.append((prompt, body.sampling(room, seed + choice, logprobs, of_prompt)))
    return Reply(
        service,
        asked,
        CompletionForm(service, body, prompts),
        f"cmpl-{uuid.uuid4().hex}",
        sum(map(len, ids)),
        bool(body.stream),
        body.include_usage,
    )


class CompletionForm:
    """Choices of ``text_completion``: an event's has the shape of the whole's."""

    kind = chunk_kind = "text_completion"

    def __init__(self, service: Service, body: CompletionBody, prompts: list[Prompt]) -> None:
        self._names = TokenNames(service.encoder.tokenizer.special_tokens())
        self._alternatives, self._n = body.logprobs, body.n or 1
        self._logprobs: dict[int, CompletionLogprobs] = {}
        decode = service.encoder.tokenizer.decode
        echoed = prompts if body.echo else []
        self._echo = [each if isinstance(each, str) else decode(each) for each in echoed]
        self._begun: set[int] = set()

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        text = delta.text
        if self._echo and index not in self._begun:
            text = self._echo[index // self._n] + text
        self._begun.add(index)
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs_of(index, delta),
            "finish_reason": delta.finish,
        }

    whole = chunk

    def _logprobs_of(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._alternatives is None:
            return None
        if index not in self._logprobs:
            self._logprobs[index] = CompletionLogprobs(self._names, self._alternatives)
        return self._logprobs[index].of((*delta.prompt, *delta.tokens))
