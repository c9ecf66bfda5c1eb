"""Prompts continued together: each as it would be alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from questtrain.inference.evaluate.generation import Decoding, Generator
from questtrain.inference.generate import generate_tokens
from questtrain.inference.load import TrainedModel, load_run

TEXTS = ["def ", "import os\n\nclass A:\n    def f(self, x", "x", "", "    return self._" * 3]


@pytest.fixture(scope="module")
def model(trained) -> TrainedModel:
    return load_run(trained("w4a4"), "cpu", packed=True)


@pytest.fixture(scope="module")
def prompts(model: TrainedModel) -> list[list[int]]:
    return [[model.tokenizer.bos_id, *model.tokenizer.encode(text)] for text in TEXTS]


@pytest.mark.parametrize("batch_tokens", [64, 200, None])
def test_a_batch_says_what_each_prompt_alone_is_continued_with(model, prompts, batch_tokens):
    """Greedily, in batches of 1, of 3 (the last one smaller) and of all."""
    told: list[int] = []
    generator = Generator(model, batch_tokens)
    texts = generator.continuations(prompts, Decoding(20), told.append)
    alone = [[*generate_tokens(model, prompt, 20, 0, 1, 0)] for prompt in prompts]
    assert texts == [model.tokenizer.decode(tokens) for tokens in alone]
    assert sum(told) == len(prompts)
    assert len(set(texts)) > 1


def test_what_is_drawn_depends_on_seed_and_prompt_alone(model, prompts):
    how = Decoding(12, temperature=1.0, top_p=0.9, seed=5)
    texts = [Generator(model, size).continuations(prompts, how) for size in (64, 200, None)]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != Generator(model).continuations(prompts, replace(how, seed=6))
    twice = Generator(model).continuations([prompts[0]] * 2, how)
    assert twice[0] != twice[1], "the same prompt twice is drawn twice"


def test_a_text_of_until_ends_an_answer_and_is_no_part_of_it(model, prompts):
    (whole,) = Generator(model).continuations([prompts[0]], Decoding(20))
    end = whole[7:9]
    (cut,) = Generator(model).continuations([prompts[0]], Decoding(20, until=("", "zzzz", end)))
    assert cut == whole.partition(end)[0]


def test_a_document_ends_where_the_next_begins(model, prompts):
    """As if another token were BOS: the first that an answer has not begun with."""
    tokens = [*generate_tokens(model, prompts[1], 20, 1, 1, 0)]
    place = next(place for place, token in enumerate(tokens) if token != tokens[0])
    bos = {"decode": model.tokenizer.decode, "bos_id": tokens[place]}
    other = replace(model, tokenizer=SimpleNamespace(**bos))
    (cut,) = Generator(other).continuations([prompts[1]], Decoding(20, temperature=1))
    assert cut == model.tokenizer.decode(tokens[:place])


def test_answers_and_prompts_beyond_the_trained_length(model, prompts):
    """The older half of what fills the 64 positions goes, as in `generate_tokens`; of a longer
    prompt what the answer leaves room for is kept, half of the length at least."""
    long = [model.tokenizer.bos_id, *range(1, 100)]
    texts = Generator(model).continuations([prompts[0], long], Decoding(90))
    for prompt, text in zip((prompts[0], long[-32:]), texts, strict=True):
        tokens = [*generate_tokens(model, prompt, 90, 0, 1, 0)]
        assert text == model.tokenizer.decode(tokens)
        assert len(tokens) == 90
    (short,) = Generator(model).continuations([long], Decoding(10))
    (same,) = Generator(model).continuations([long[-54:]], Decoding(10))
    assert short == same


def test_no_prompts(model):
    assert Generator(model).continuations([], Decoding(5)) == []
