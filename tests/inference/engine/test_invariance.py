"""Same request, same tokens and log-probabilities in every bit, whatever else is in the batch."""

import random

import pytest

from questtrain.inference.engine.engine import Engine
from questtrain.inference.engine.prompt_graphs import PromptGraphs
from questtrain.inference.engine.requests import Request, Sampling
from tests.inference.engine.engines import alone, answer, drive, random_prompt, random_request

KINDS = [("w4a4", True), ("w4a4", False), ("w4a16", True), ("w8a8", True), ("bf16", False)]
GREEDY = Sampling(24, temperature=0, logprobs=2, prompt_logprobs=True)
NUCLEUS = Sampling(24, temperature=1.1, top_p=0.8, seed=-(1 << 63), logprobs=5)


def others(rng, vocab_size, count=12):
    """Requests from id 100 on, by the step before which they come, and some that are cancelled."""
    arrivals, cancelled = {}, {}
    for id in range(100, 100 + count):
        at = rng.randrange(14)
        arrivals.setdefault(at, []).append(random_request(rng, id, vocab_size))
        if rng.random() < 0.3:
            cancelled.setdefault(at + rng.randrange(6), []).append(id)
    return arrivals, cancelled


@pytest.mark.parametrize(("bits", "packed"), KINDS)
@pytest.mark.parametrize("sampling", [GREEDY, NUCLEUS])
def test_alone_or_among_others(trained, bits, packed, sampling):
    """In whichever slot, beside prompts that are read, answers that end and requests that are
    cancelled."""
    model = trained(bits, packed)
    engine, rng = Engine(model, 8), random.Random(bits)
    request = Request(1, random_prompt(rng, engine.vocab_size, 30), sampling)
    expected = alone(engine, request)
    assert expected[3] == 24 or expected[4] == "stop"
    for at in (0, 5):
        arrivals, cancelled = others(rng, engine.vocab_size)
        arrivals.setdefault(at, []).insert(rng.randrange(3), request)
        assert answer(drive(engine, arrivals, cancelled)[1]) == expected


def test_prompts_filled_up_for_graphs(trained):
    """As a GPU reads them."""
    model = trained("w4a4", True)
    engine, rng = Engine(model, 8), random.Random(1)
    batch = engine._batch
    batch._prompts = PromptGraphs(model.model, batch._slots.cache, 64, None)
    batch._capture(batch._prompts)
    request = Request(1, random_prompt(rng, engine.vocab_size, 30), NUCLEUS)
    expected = alone(engine, request)
    arrivals, cancelled = others(rng, engine.vocab_size)
    arrivals.setdefault(5, []).insert(0, request)
    assert answer(drive(engine, arrivals, cancelled)[1]) == expected
