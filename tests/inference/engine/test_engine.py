"""The engine: what requests are answered, in which order, and how each of them ends."""

import math
import random
from dataclasses import replace

import pytest
import torch

from questtrain.errors import UserError
from questtrain.inference.engine import engine as engine_module
from questtrain.inference.engine import memory
from questtrain.inference.engine.batch import Batch
from questtrain.inference.engine.engine import Engine
from questtrain.inference.engine.requests import Request, Sampling
from questtrain.inference.generate import generate_tokens
from tests.inference.engine.engines import (
    CONTEXT,
    alone,
    answer,
    drive,
    random_prompt,
    random_request,
)

PROMPT = (0, 40, 41, 42, 43, 44, 45, 46)


@pytest.fixture
def packed(trained):
    return trained("w4a4", True)


def text_of(result):
    return result[0]


def greedy(max_tokens=20, **changes):
    return Sampling(max_tokens, temperature=0, **changes)


@pytest.mark.parametrize(("bits", "is_packed"), [("w4a4", True), ("bf16", False)])
def test_greedy_answers_are_those_of_generate(trained, bits, is_packed):
    model = trained(bits, is_packed)
    engine = Engine(model, 4)
    rng = random.Random(3)
    prompts = [random_prompt(rng, engine.vocab_size, length) for length in (1, 2, 9, 30, 17)]
    requests = [Request(i, p, greedy(20, logprobs=0)) for i, p in enumerate(prompts)]
    deltas = drive(engine, {0: requests})
    for prompt, came in zip(prompts, deltas.values(), strict=True):
        tokens = list(generate_tokens(model, list(prompt), 20, 0, 1, 0))
        text, told, _, generated, finish = answer(came)
        assert [info.token for info in told] == tokens
        assert text == b"".join(info.bytes or b"" for info in told).decode(errors="replace")
        assert (generated, finish) == (20, "length")


@pytest.mark.parametrize("piece", [512, 16, 7])
def test_logprobs_of_prompt_and_answer(trained, piece, monkeypatch):
    """Against one pass of the whole text, however the prompt was cut."""
    monkeypatch.setattr(engine_module, "PIECE", piece)
    model = trained("bf16", False)
    engine = Engine(model, 2)
    prompt = random_prompt(random.Random(5), engine.vocab_size, 33)
    request = Request(7, prompt, Sampling(9, 0.8, 0.9, seed=4, logprobs=3, prompt_logprobs=True))
    deltas = drive(engine, {0: [request]})[7]
    told, of_prompt = answer(deltas)[1:3]
    assert len(deltas[0].prompt) == len(of_prompt) == 33
    every = [*of_prompt, *told]
    tokens = torch.tensor([[info.token for info in every]])
    assert tokens[0, :33].tolist() == list(prompt)
    logprobs = model.model(tokens)[0].log_softmax(-1)
    assert (every[0].logprob, every[0].top, every[0].bytes) == (None, (), None)
    for place, info in enumerate(every[1:]):
        expected = logprobs[place]
        assert info.logprob == pytest.approx(float(expected[info.token]), abs=2e-4)
        of_top = [alternative.logprob for alternative in info.top]
        assert of_top == pytest.approx(expected.topk(3).values.tolist(), abs=2e-4)
        assert of_top == sorted(of_top, reverse=True)


def test_a_prompt_read_in_pieces_lets_others_decode(packed, monkeypatch):
    monkeypatch.setattr(engine_module, "PIECE", 8)
    engine, seen = Engine(packed, 2), []
    engine.add(Request(1, PROMPT, greedy(30)))
    engine.step()
    engine.add(Request(2, random_prompt(random.Random(1), 200, 40), greedy(3)))
    while not engine.is_idle:
        seen.append({delta.id for delta in engine.step()})
    first = next(step for step, ids in enumerate(seen) if 2 in ids)
    assert first >= 5
    assert all(1 in ids for ids in seen[:first])


def test_short_prompts_are_read_in_one_step(packed):
    engine = Engine(packed, 8)
    for id in range(8):
        engine.add(Request(id, PROMPT, greedy(5)))
    assert (engine.running, engine.waiting) == (0, 8)
    assert engine.step() == []
    assert (engine.running, engine.waiting) == (8, 0)
    assert {delta.id for delta in engine.step()} == set(range(8))


def test_requests_are_served_in_the_order_they_came(packed):
    """More than there are slots: each starts no later than those behind it."""
    engine, rng = Engine(packed, 3), random.Random(8)
    requests = [replace(random_request(rng, id, 200), id=id) for id in range(20)]
    deltas = drive(engine, {0: requests})
    assert list(deltas) == sorted(deltas)
    assert len(deltas) == 20
    assert all(came[-1].finish in ("stop", "length") for came in deltas.values())


def test_max_tokens_and_the_end_of_the_context(packed):
    engine = Engine(packed, 2, context=12)
    assert alone(engine, Request(1, PROMPT, greedy(4)))[3:] == (4, "length")
    assert alone(engine, Request(1, PROMPT, greedy(100)))[3:] == (12 - 8, "length")
    assert alone(engine, Request(1, (0,) * 11, greedy(100)))[3:] == (1, "length")


def test_no_tokens_but_the_prompts_logprobs(packed):
    engine = Engine(packed, 2, context=8)
    request = Request(1, PROMPT, greedy(0, prompt_logprobs=True, logprobs=2))
    (delta,) = drive(engine, {0: [request]})[1]
    assert (delta.text, delta.generated, delta.tokens, delta.finish) == ("", 0, (), "length")
    assert [info.token for info in delta.prompt] == list(PROMPT)
    assert [len(info.top) for info in delta.prompt] == [0, *[2] * 7]
    (delta,) = drive(engine, {0: [Request(1, (0,), replace(request.sampling))]})[1]
    assert [info.token for info in delta.prompt] == [0]


def test_the_documents_end_ends_an_answer(packed):
    engine = Engine(packed, 2)
    tokens = [info.token for info in alone(engine, Request(1, PROMPT, greedy(logprobs=0)))[1]]
    engine._end = tokens[5]
    first = tokens.index(tokens[5])
    deltas = drive(engine, {0: [Request(1, PROMPT, greedy())]})[1]
    assert (sum(delta.generated for delta in deltas), deltas[-1].finish) == (first + 1, "stop")


def test_stop_strings_end_an_answer(packed):
    engine = Engine(packed, 2)
    whole = text_of(alone(engine, Request(1, PROMPT, Sampling(40, 1.0, seed=3))))
    stop = whole[11:14]
    request = Request(1, PROMPT, Sampling(40, 1.0, seed=3, stop=("never there", stop), logprobs=0))
    text, told, _, generated, finish = alone(engine, request)
    assert text == whole[: whole.index(stop)]
    assert finish == "stop"
    assert generated <= 40
    *but_last, last = (info.bytes or b"" for info in told)
    assert b"".join([*but_last, last]).decode(errors="replace").startswith(text)
    assert len(b"".join(but_last).decode(errors="ignore")) < len(text), "the rest is the stop's"


def test_cancelled_requests_leave_no_trace(packed):
    """Before their prompt, within it, as they decode, twice, and when they are over."""
    engine, rng = Engine(packed, 2), random.Random(2)
    long = [Request(id, random_prompt(rng, 200, 20), greedy(40)) for id in range(6)]
    for request in long:
        engine.add(request)
    engine.cancel(4)
    came = [*engine.step(), *engine.step()]
    engine.cancel(0)
    engine.cancel(0)
    engine.cancel(99)
    assert (engine.running, engine.waiting) == (1, 3)
    while not engine.is_idle:
        came += engine.step()
    assert {delta.id for delta in came if delta.finish} == {1, 2, 3, 5}
    assert sum(delta.generated for delta in came if delta.id == 0) < 5
    assert sorted(engine._free) == [0, 1]
    engine.cancel(1)
    assert alone(engine, long[0])[3:] == (40, "length")


def test_a_half_read_prompt_is_cancelled(packed, monkeypatch):
    monkeypatch.setattr(engine_module, "PIECE", 8)
    engine = Engine(packed, 1)
    request = Request(1, random_prompt(random.Random(1), 200, 40), greedy(3))
    expected = alone(engine, request)
    engine.add(request)
    engine.step()
    assert (engine.running, engine.waiting) == (1, 0)
    engine.cancel(1)
    assert (engine.running, engine.waiting, engine._free) == (0, 0, [0])
    assert alone(engine, request) == expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "too little memory for a prompt of 8 tok"),
        (RuntimeError("something else"), "RuntimeError: something else"),
    ],
)
def test_an_error_in_a_prompt_ends_that_request_alone(packed, monkeypatch, error, words):
    engine = Engine(packed, 2)
    expected = alone(engine, Request(1, PROMPT, greedy()))
    read = Batch.read

    def fail(batch, slot, request, *place):
        piece = read(batch, slot, request, *place)
        if request.id == 2:
            raise error
        return piece

    monkeypatch.setattr(Batch, "read", fail)
    requests = [Request(id, PROMPT, greedy()) for id in (1, 2, 3)]
    deltas = drive(engine, {0: requests})
    (delta,) = deltas[2]
    assert delta.finish == "error"
    assert delta.error.startswith(words)
    assert answer(deltas[1]) == answer(deltas[3]) == expected
    assert sorted(engine._free) == [0, 1]


def test_bad_requests_are_refused(packed):
    engine = Engine(packed, 1)
    for prompt in ((), (0,) * CONTEXT):
        with pytest.raises(ValueError, match=f"must have 1 to {CONTEXT - 1} tokens, not"):
            engine.add(Request(1, prompt, greedy()))
    for token in (-1, engine.vocab_size):
        with pytest.raises(ValueError, match=f"tokens must be 0 to {engine.vocab_size - 1}"):
            engine.add(Request(1, (0, token), greedy()))
    engine.add(Request(1, PROMPT, greedy()))
    with pytest.raises(ValueError, match="the engine has a request 1"):
        engine.add(Request(1, PROMPT, greedy()))
    assert engine.waiting == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": -1}, "max_tokens must be 0 or more, not -1"),
        ({"temperature": -0.5}, "temperature must be a number from 0 on, not -0.5"),
        ({"temperature": math.inf}, "temperature must be a number from 0 on, not inf"),
        ({"temperature": math.nan}, "temperature must be a number from 0 on, not nan"),
        ({"top_p": 0.0}, "top_p must be over 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be over 0 and at most 1, not 1.5"),
        ({"top_p": math.nan}, "top_p must be over 0 and at most 1, not nan"),
        ({"logprobs": -1}, "logprobs must be None or 0 and more, not -1"),
        ({"stop": ("a", "")}, "a stop string must not be empty"),
    ],
)
def test_bad_samplings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        Sampling(**{"max_tokens": 1, **wrong})


@pytest.mark.parametrize("context", [1 << 40, 1 << 53])
def test_a_cache_that_no_machine_has_is_a_message(packed, context, monkeypatch):
    """By the allocator of a CPU itself."""
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1 << 100)
    with pytest.raises(UserError, match=rf"of 2 sequences of {context:,} tokens do not fit"):
        Engine(packed, 2, context)


def test_a_cache_too_large_is_a_message(packed, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "Batch", full)
    with pytest.raises(
        UserError, match="1,000 sequences of 64 tokens do not fit into the device's"
    ):
        Engine(packed, 1000)


def test_a_model_without_a_cache_is_refused(packed):
    with pytest.raises(TypeError, match="takes a Llama or a PackedLlama, not Linear"):
        Engine(replace(packed, model=torch.nn.Linear(2, 2)), 1)
