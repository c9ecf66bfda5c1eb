"""Long documents in segments, so that memory does not grow with the longest one.

The tokens are those of the whole document. A cut is made only where the tokenizer itself has a
border: the text before it, encoded with what follows, must begin with the tokens that it has
alone. The next segment is then encoded together with the last characters before it, whose tokens
are taken off again: a tokenizer that treats the beginning of a text in its own way (SentencePiece
puts a space there) sees no beginning. This rests on tokens depending on `CONTEXT` characters
around them and no more, which holds for BPE and for whatever splits a text into words first. Where
there is no border (one word of a hundred thousand characters), the cut is made anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from questtrain.data.documents import Document
from questtrain.data.tokenizer import Tokenizer

SEGMENT = 1 << 16
"""Characters of a segment, at least; a document of fewer than twice as many is one segment."""
CONTEXT = 256
"""Characters before a segment that are encoded with it, and those around a border that decide."""
ATTEMPTS = 64
"""Places that are tried for a cut: before white space, then any."""

_BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")


@dataclass(frozen=True)
class Segment:
    """Consecutive text of one document, and what stands before it.

    ``context`` are the last characters before it with their tokens ``context_ids``; none at the
    document's beginning.
    """

    text: str
    context: str
    context_ids: list[int]


def segments_of(document: Document, tokenizer: Tokenizer) -> Iterator[Segment]:
    """The document in order; EncodingError if the tokenizer cannot encode what is around a cut."""
    context, rest = "", ""
    ids: list[int] = []
    for block in document.blocks():
        rest += block
        while len(rest) >= 2 * SEGMENT:
            cut, cut_ids = _cut(context + rest, len(context), tokenizer)
            yield Segment(rest[:cut], context, ids)
            context, ids = (context + rest[:cut])[-CONTEXT:], cut_ids
            rest = rest[cut:]
    if rest:
        yield Segment(rest, context, ids)


def encode_segments(tokenizer: Tokenizer, segments: list[Segment]) -> list[list[int]]:
    """The tokens of each segment, in the order of the segments."""
    rows = tokenizer.encode_batch([segment.context + segment.text for segment in segments])
    own = []
    for segment, ids in zip(segments, rows, strict=True):
        length = len(segment.context_ids)
        follows = ids[:length] == segment.context_ids
        own.append(ids[length:] if follows else tokenizer.encode(segment.text))
    return own


def _cut(text: str, begin: int, tokenizer: Tokenizer) -> tuple[int, list[int]]:
    """Where to cut ``text``, counted from ``begin``, and the ids of the context before the cut."""
    first = begin + SEGMENT
    spaces = _BEFORE_SPACE.finditer(text, first, first + SEGMENT // 2)
    places = [match.start() for _, match in zip(range(ATTEMPTS), spaces, strict=False)]
    for place in (*places, *range(first, first + ATTEMPTS)):
        before, after = text[place - CONTEXT : place], text[place : place + CONTEXT]
        alone, together = tokenizer.encode_batch([before, before + after])
        if together[: len(alone)] == alone:
            return place - begin, alone
    return SEGMENT, tokenizer.encode(text[first - CONTEXT : first])
