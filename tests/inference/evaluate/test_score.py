"""The scores of continuations: each against the model called on it alone."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from questtrain.inference.evaluate import score as score_module
from questtrain.inference.evaluate.score import Scorer, batches, windows
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama, PackedLlama

LENGTH, VOCAB = 16, 96


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "values"])
def trained(request, compose) -> TrainedModel:
    """A model of W4A4 with weights that make some tokens likely, packed and not."""
    model = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "vocab_size": VOCAB}
    config = compose("30M", bits="w4a4", sequence_length=LENGTH, model=model)
    llama = Llama(config.model, config.bits, config.quant)
    llama.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        llama.lm_head.weight.mul_(50)
    ready = for_use(llama, torch.device("cpu"), request.param)
    assert isinstance(ready, PackedLlama) == request.param
    return TrainedModel(ready, SimpleNamespace(bos_id=0), config, 0)


def drawn_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    """Of all lengths, also beyond the trained one, some of them with one context."""
    draw = random.Random(0)
    pairs = []
    for _ in range(count):
        context = [0, *draw.choices(range(1, VOCAB), k=draw.randrange(25))]
        for _ in range(draw.randrange(1, 4)):
            pairs.append((context, draw.choices(range(VOCAB), k=draw.choice((1, 1, 3, 7, 20, 45)))))
    return pairs


def alone(trained: TrainedModel, context: list[int], continuation: list[int]) -> list[float]:
    """Log-probability of each token of a continuation, by the definition: a token after the
    window of its place."""
    found = []
    for inputs, targets in windows(context, continuation, LENGTH):
        logprobs = trained.model(torch.tensor([inputs]))[0].double().log_softmax(-1)
        found += logprobs[torch.arange(-len(targets), 0), torch.tensor(targets)].tolist()
    return found


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_each_score_is_that_of_the_pair_alone(trained, batch_tokens):
    pairs = drawn_pairs(12)
    told: list[int] = []
    scores = Scorer(trained, batch_tokens).score(pairs, told.append)
    for (context, continuation), score in zip(pairs, scores, strict=True):
        expected = alone(trained, context, continuation)
        assert len(expected) == len(continuation)
        assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
    rows = {w.inputs for pair in pairs for w in windows(*pair, LENGTH)}
    assert sum(told) == len(rows), "the same row twice is computed once"


def test_greedy_is_what_the_model_would_have_said(trained):
    """A continuation of most likely tokens, and the same with one token changed at any place."""
    said = [0]
    for _ in range(4):
        said.append(int(trained.model(torch.tensor([said]))[0, -1].argmax()))
    others = [[*said[1:]] for _ in range(4)]
    for place, other in enumerate(others):
        other[place] = (other[place] + 1) % VOCAB
    scores = Scorer(trained).score([([0], each) for each in (said[1:], *others)])
    assert [score.greedy for score in scores] == [True, False, False, False, False]


def test_logits_are_made_in_pieces(trained, monkeypatch):
    """Pieces of three positions give the same scores, to the last bit of fp32's sums."""
    pairs = drawn_pairs(3)
    whole = Scorer(trained).score(pairs)
    monkeypatch.setattr(score_module, "LOGIT_BYTES", 3 * 4 * VOCAB)
    for one, other in zip(whole, Scorer(trained).score(pairs), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.greedy == other.greedy


def test_an_empty_continuation_is_certain_and_an_empty_context_is_none(trained):
    assert Scorer(trained).score([([0, 5], []), ([0], [])]) == [(0.0, True)] * 2
    assert Scorer(trained).score([]) == []
    with pytest.raises(ValueError, match="pair 1 has no context"):
        Scorer(trained).score([([0], [1]), ([], [1])])


def test_another_model_is_refused(trained):
    with pytest.raises(TypeError, match="not Linear"):
        Scorer(replace(trained, model=torch.nn.Linear(2, 2)))


def test_a_batch_holds_what_fits_at_its_longest():
    rows = [(1,) * length for length in (3, 10, 1, 10, 4, 2, 12)]
    lengths = [[len(row) for row in batch] for batch in batches(rows, 20)]
    assert lengths == [[12], [10, 10], [4, 3, 2, 1]]


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 31, 32, 33, 100])
def test_windows_are_those_of_the_harness(tokens):
    """Where the context is one token; each token is predicted once, in order, whatever it is."""
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(1, tokens + 1))
    expected = list(utils.get_rolling_token_windows(ids, 0, LENGTH, 1))
    assert [(list(i), list(t)) for i, t in windows([0], ids, LENGTH)] == expected
    for context in ([0], [0] * 9, [0] * 40):
        cut = list(windows(context, ids, LENGTH))
        assert [token for window in cut for token in window.targets] == ids
        assert all(len(window.targets) <= len(window.inputs) <= LENGTH for window in cut)
