"""``POST /v1/chat/completions``."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request

from questtrain.inference.engine.requests import Delta
from questtrain.inference.serve.bodies import ChatBody
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.logprobs import TokenNames, chat_logprobs
from questtrain.inference.serve.reply import Reply
from questtrain.inference.serve.service import Service, seed_of

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Reply:
    """The assistant's next message, ``n`` times."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    if service.template is None:
        raise ApiError(
            400,
            "this model's tokenizer has no chat template, so a chat cannot be written as a prompt:"
            " use /v1/completions, or start the server with chat_template=FILE.",
            "messages",
            "no_chat_template",
        )
    n, seed = body.n or 1, seed_of(body.seed)
    service.check_room(n)
    prompt = await service.template.chat_ids(body.messages, service.encoder)
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    room = service.encoder.room(prompt, most, None)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Reply(
        service,
        [(prompt, body.sampling(room, seed + choice, logprobs)) for choice in range(n)],
        ChatForm(service, body),
        f"chatcmpl-{uuid.uuid4().hex}",
        len(prompt),
        bool(body.stream),
        body.include_usage,
    )


class ChatForm:
    """Choices of ``chat.completion`` and of the events of one."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatBody) -> None:
        self._names = TokenNames(service.encoder.tokenizer.special_tokens())
        self._tells = bool(body.logprobs)
        self._begun: set[int] = set()

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        message = {"content": delta.text}
        if index not in self._begun:
            message = {"role": "assistant", **message}
        self._begun.add(index)
        return self._choice(index, delta, "delta", message)

    def whole(self, index: int, answer: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return self._choice(index, answer, "message", message)

    def _choice(
        self, index: int, delta: Delta, key: str, message: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "index": index,
            key: message,
            "logprobs": chat_logprobs(self._names, delta.tokens) if self._tells else None,
            "finish_reason": delta.finish,
        }
