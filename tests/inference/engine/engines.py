"""Small models to serve, and requests that come and go."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from questtrain.config import ModelConfig, TrainConfig
from questtrain.data import Tokenizer, load_tokenizer
from questtrain.inference.engine.engine import Engine
from questtrain.inference.engine.requests import Delta, Request, Sampling
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama
from questtrain.quant.method import method_config

TEXTS = ["def double(x):\n    return 2 * x  # naïve café 日本 😀\n"] * 4
CONTEXT = 64


@cache
def byte_tokenizer(folder: Path) -> Tokenizer:
    from tests.data.tokenizers import byte_bpe, save

    return load_tokenizer(save(byte_bpe(TEXTS), folder / "tokenizer.json"))


def trained_model(
    config: TrainConfig,
    tokenizer: Tokenizer,
    bits: str,
    packed: bool | None,
    device: str = "cpu",
    **of_model: Any,
) -> TrainedModel:
    """Of random weights, so large that answers vary; ``config`` is any run's."""
    shape: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 128,
        "num_heads": 4,
        "intermediate_size": 256,
        "vocab_size": tokenizer.vocab_size,
        **of_model,
    }
    model_config = ModelConfig("small", 1, **shape)
    model = Llama(model_config, bits, method_config("quest"))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
        model.lm_head.weight.mul_(8)
    config = replace(config, model=model_config, bits=bits, sequence_length=CONTEXT)
    return TrainedModel(for_use(model, torch.device(device), packed), tokenizer, config, 1)


def drive(
    engine: Engine,
    arrivals: Mapping[int, Iterable[Request]],
    cancelled: Mapping[int, Iterable[int]] | None = None,
) -> dict[int, list[Delta]]:
    """The deltas of each request; those of a number come before the step of that number, and so
    are those cancelled."""
    deltas: dict[int, list[Delta]] = {}
    step, last = 0, max(arrivals)
    while step <= last or not engine.is_idle:
        for request in arrivals.get(step, ()):
            engine.add(request)
        for request_id in (cancelled or {}).get(step, ()):
            engine.cancel(request_id)
        for delta in engine.step():
            deltas.setdefault(delta.id, []).append(delta)
        step += 1
        assert step < 2000
    return deltas


def answer(deltas: list[Delta]) -> tuple[Any, ...]:
    """All that came of a request, whatever the steps it came in."""
    tokens = [token for delta in deltas for token in delta.tokens]
    prompt = [token for delta in deltas for token in delta.prompt]
    text = "".join(delta.text for delta in deltas)
    return text, tokens, prompt, sum(delta.generated for delta in deltas), deltas[-1].finish


def alone(engine: Engine, request: Request) -> tuple[Any, ...]:
    return answer(drive(engine, {0: [request]})[request.id])


def random_prompt(rng: random.Random, vocab_size: int, length: int) -> tuple[int, ...]:
    """BOS, which is token 0, and others."""
    return (0, *(rng.randrange(1, vocab_size) for _ in range(length - 1)))


def random_request(rng: random.Random, id: int, vocab_size: int) -> Request:
    """Of any kind."""
    sampling = Sampling(
        max_tokens=rng.randrange(1, 20),
        temperature=rng.choice((0.0, 0.7, 1.3)),
        top_p=rng.choice((0.3, 0.9, 1.0)),
        seed=rng.getrandbits(70),
        logprobs=rng.choice((None, 0, 3)),
        prompt_logprobs=rng.random() < 0.3,
        stop=rng.choice(((), ("e",), ("ab", "\n"))),
    )
    return Request(id, random_prompt(rng, vocab_size, rng.randrange(1, 40)), sampling)
