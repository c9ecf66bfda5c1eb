"""The document's end is told, too: who scores a continuation with ``max_tokens=1`` counts on a
token after it, whatever that is (lm-evaluation-harness drops the last one)."""

from __future__ import annotations

from pathlib import Path

from questtrain.data import load_tokenizer
from questtrain.inference.engine.requests import Request, Sampling
from questtrain.inference.engine.sequence import Sequence
from questtrain.inference.engine.token_texts import TokenTexts


def test_the_end_of_a_document_has_a_log_probability(tokenizer: Path) -> None:
    read = load_tokenizer(tokenizer)
    (letter,) = read.encode("x")
    for stop in ((), ("stop",)):
        request = Request(0, (0, letter), Sampling(8, logprobs=0, stop=stop))
        sequence = Sequence(request, 32, TokenTexts(read), read.bos_id)
        first = sequence.take(letter, -1.0, [])
        end = sequence.take(read.bos_id, -0.25, [])
        told = [(info.token, info.logprob, info.bytes) for info in (*first.tokens, *end.tokens)]
        assert told == [(letter, -1.0, b"x"), (read.bos_id, -0.25, None)]
        assert (first.text + end.text, end.finish) == ("x", "stop")
