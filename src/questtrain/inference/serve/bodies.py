"""What requests may say. A parameter that this server does not act on is refused, unless it has the
value at which it would change nothing; only ``user`` and the like, which say who asks, are passed
over."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from questtrain.inference.engine.requests import Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Parameters that are known and not supported, and what they may say all the same, besides null."""

PASSED_OVER = ("user", "safety_identifier", "prompt_cache_key", "metadata")

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1000
MAX_LOGPROBS = 20

STEEP = 1e-3
"""The lowest temperature above 0, as `questtrain generate` has it: dividing logits by less may make
infinities of them."""


AT_PARAMETER = "at_parameter"
"""Pydantic's name for errors of `at`."""


def at(param: str, message: str) -> PydanticCustomError:
    """An error of a whole body for which one of its parameters is to blame."""
    return PydanticCustomError(AT_PARAMETER, "{message}", {"param": param, "message": message})


def _stops(value: Any) -> Any:
    """A single stop string is a list of one."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("a text, or a list of texts")
    return value


def _temperature(value: float) -> float:
    if 0 < value < STEEP:
        raise ValueError(f"either 0, which takes the most likely token, or from {STEEP} to 2")
    return value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[list[Stop], BeforeValidator(_stops), Field(min_length=1, max_length=MAX_STOPS)]
Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_temperature)]
SEEDS = 2**63


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Body(BaseModel):
    """What completions and chats share."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: Temperature | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def without_neutral(cls, given: Any) -> Any:
        """Parameters that change nothing are taken out; halves of surrogate pairs, which no text
        has, are refused wherever they stand."""
        if not isinstance(given, dict):
            return given
        try:
            json.dumps(given, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text holds half of a surrogate pair") from error
        return {
            key: value
            for key, value in given.items()
            if key not in PASSED_OVER
            and not (key in NEUTRAL and (value is None or value in NEUTRAL[key]))
        }

    @model_validator(mode="after")
    def agree(self) -> Body:
        """What one parameter asks of another."""
        if self.stream_options is not None and not self.stream:
            raise at("stream_options", "stream_options needs stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self, max_tokens: int, seed: int, logprobs: int | None, prompt_logprobs: bool = False
    ) -> Sampling:
        """How the tokens of one choice are chosen, by the API's defaults where it is not said."""
        return Sampling(
            max_tokens,
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            seed,
            logprobs,
            prompt_logprobs,
            tuple(self.stop or ()),
        )


class CompletionBody(Body):
    """``POST /v1/completions``."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def returns_all(self) -> CompletionBody:
        """The best of several is not chosen here."""
        if self.best_of not in (None, self.n or 1):
            raise at("best_of", "best_of is not supported: all n answers are returned")
        return self


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    """A text is one part: a union of both would name the wrong one in its errors."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("a text, or a list of parts of type text")
    return value


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class ChatBody(Body):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def tells_of_tokens(self) -> ChatBody:
        """Alternatives are told only with log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise at("top_logprobs", "top_logprobs needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            same = "max_tokens and max_completion_tokens are the same: give one of them"
            raise at("max_completion_tokens", same)
        return self
