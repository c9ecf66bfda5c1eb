"""Where a text is cut into context and continuation."""

from __future__ import annotations

import pytest

from questtrain.inference.evaluate.prompts import encode_pairs, encode_prompts
from questtrain.inference.load import load_run


@pytest.fixture(scope="module")
def tokenizer(trained):
    return load_run(trained("w4a4"), "cpu").tokenizer


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("def f", "(self)", "def f", "(self)"),
        ("return ", "self", "return", " self"),
        ("a\n  ", " b", "a", "\n   b"),
        ("", "self", "", "self"),
        (" ", "self", "", " self"),
        ("<s>x", "y", "<s>x", "y"),
    ],
)
def test_white_space_belongs_to_what_follows(tokenizer, context, continuation, before, after):
    """And a context has BOS before it, once, whatever it spells."""
    ((ids, rest),) = encode_pairs(tokenizer, [(context, continuation)])
    assert ids == [tokenizer.bos_id, *tokenizer.encode(before)]
    assert ids[1:] + rest == tokenizer.encode(before + after)


def test_a_merge_over_the_border_leaves_the_continuation_something(tokenizer):
    """``se`` + ``lf`` is the one token ``self`` of this vocabulary, as long as that of ``se``."""
    assert len(tokenizer.encode("self")) == len(tokenizer.encode("se")) == 1
    ((_, rest),) = encode_pairs(tokenizer, [("se", "lf")])
    assert rest == tokenizer.encode("lf")
    assert encode_pairs(tokenizer, [("se", "")])[0][1] == []


def test_prompts_begin_with_bos(tokenizer):
    assert encode_prompts(tokenizer, ["", "x"]) == [
        [tokenizer.bos_id],
        [tokenizer.bos_id, *tokenizer.encode("x")],
    ]
