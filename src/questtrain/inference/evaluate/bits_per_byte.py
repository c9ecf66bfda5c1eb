"""Bits per byte: of texts, and of the right answers to questions.

Bits per byte is the sum of -log₂ p over all tokens, divided by the bytes of the text in UTF-8. It
does not depend on the tokenizer, so that models of different ones compare, and it is smooth where
small models answer no question right. BOS is context: it is neither scored nor counted.

A text longer than the trained context of T tokens is scored in windows: the first T tokens with all
that precedes them, then ``stride`` tokens at a time, each with the T + 1 - stride tokens before
them at least. Each token is scored exactly once.

Of an answer the same is taken over the right continuation alone, its leading space included, given
the question, and averaged over the questions (Bhagia et al., "Establishing task scaling laws via
compute-efficient model ladders", 2024; arXiv 2412.04403: there it is the loss that accuracies are
predicted from).
"""

from __future__ import annotations

import glob
import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from statistics import fmean
from typing import cast

from questtrain.data import Tokenizer
from questtrain.data.documents import Document, check_suffix, read_documents
from questtrain.data.encoding import read_facts
from questtrain.data.segments import encode_segments, segments_of
from questtrain.data.sources import expand
from questtrain.data.text_rows import TextField
from questtrain.data.tokenizer import EncodingError
from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.core import CHUNK, standard_error
from questtrain.inference.evaluate.question_prompts import Ids, Pair, prompts_of, scored_parts
from questtrain.inference.evaluate.questions import (
    LanguageModeling,
    MultipleChoice,
    holds_choices,
    read_questions,
)
from questtrain.store.evaluations import Metric, TaskResult, column_of

log = logging.getLogger(__name__)

WINDOWS = 256
"""Windows that are scored at a time."""
SEGMENTS = 64
"""Segments of a document that are tokenized at a time."""


def windows(tokens: Iterator[int], length: int, stride: int) -> Iterator[Pair]:
    """Context and continuation, together at most ``length`` + 1 tokens, so that every token but the
    first is in one continuation."""
    seen: Ids = list(islice(tokens, 1))
    new = length
    while continuation := list(islice(tokens, new)):
        yield seen[len(continuation) - length - 1 :], continuation
        seen = (seen + continuation)[-length:]
        new = stride


@dataclass
class _Tally:
    """What was scored of each document: bits and bytes; and tokens that stand for text outside the
    vocabulary."""

    bits: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    unknown: int = 0

    def bits_per_byte(self) -> Metric:
        """Over all bytes; its standard error is that of a ratio of means over documents."""
        total, n = sum(self.sizes), len(self.sizes)
        ratio = math.fsum(self.bits) / total
        off = math.fsum((b - ratio * s) ** 2 for b, s in zip(self.bits, self.sizes, strict=True))
        stderr = math.sqrt(off * n / (n - 1)) / total if n > 1 else None
        return Metric.of(ratio, stderr, higher_is_better=False)


@dataclass(frozen=True)
class Texts:
    """The documents of some files, as one task called ``name``."""

    name: str
    files: list[Path]
    text_field: TextField

    def evaluate(self, asking: Asking) -> Answers:
        """Bits per byte of the documents that are not blank, which training leaves out, too."""
        tally, total = _Tally(), sum(1 for _ in self._documents())
        pending: list[tuple[int, Pair]] = []
        for number, document in enumerate(islice(self._documents(), asking.asked(total))):
            tally.bits.append(0.0)
            tally.sizes.append(0)
            for pair in self._windows(document, asking, tally):
                pending.append((number, pair))
                if len(pending) == WINDOWS:
                    _score(pending, asking, tally)
        _score(pending, asking, tally)
        if tally.unknown:
            log.warning(
                "bpb:%s: %d tokens stand for text outside the vocabulary; what they hide costs no"
                " bits, so that models of other tokenizers do not compare",
                self.name,
                tally.unknown,
            )
        result = TaskResult(
            column_of(f"bpb.{self.name}", None, asking.part(total), asking.other_stride),
            len(tally.sizes),
            total,
            {"bpb": tally.bits_per_byte()},
            files=_absolute(self.files),
            stride=asking.stride or asking.usual_stride,
        )
        return Answers({f"bpb:{self.name}": result})

    def check(self) -> Texts:
        """Itself; UserError where a file is no text, or none of them holds any."""
        if not sum(1 for _ in self._documents()):
            raise UserError(f"bpb:{self.name}: {', '.join(map(str, self.files))}: no text.")
        return self

    def _documents(self) -> Iterator[Document]:
        for path in self.files:
            for document in read_documents(path, self.text_field):
                if not read_facts(document).blank:
                    yield document

    def _windows(self, document: Document, asking: Asking, tally: _Tally) -> Iterator[Pair]:
        stride = asking.stride or asking.usual_stride
        return windows(_tokens(document, asking.tokenizer, tally), asking.scorer.length, stride)


def _tokens(document: Document, tokenizer: Tokenizer, tally: _Tally) -> Iterator[int]:
    """BOS and the document's tokens, a few segments at a time, as training has them; its bytes are
    counted on the way."""
    yield tokenizer.bos_id
    segments = segments_of(document, tokenizer)
    try:
        while some := list(islice(segments, SEGMENTS)):
            for segment, ids in zip(some, encode_segments(tokenizer, some), strict=True):
                tally.sizes[-1] += len(segment.text.encode())
                tally.unknown += ids.count(cast(int, tokenizer.unknown_id))
                yield from ids
    except EncodingError as error:
        raise UserError(
            f"the tokenizer {tokenizer.name} cannot encode {document.place}: {error.reason}. Leave"
            " that document out."
        ) from error


def _score(pending: list[tuple[int, Pair]], asking: Asking, tally: _Tally) -> None:
    """Score the windows, add their bits to their documents', and empty the list."""
    scores = asking.score([pair for _, pair in pending])
    for (document, _), score in zip(pending, scores, strict=True):
        tally.bits[document] -= score.logprob / math.log(2)
    pending.clear()


@dataclass(frozen=True)
class RightAnswers:
    """The right answers to a file of multiple-choice questions, as one task called ``name``."""

    name: str
    questions: list[MultipleChoice]
    file: Path

    def evaluate(self, asking: Asking) -> Answers:
        """The mean over the questions of the bits per byte of the right answer."""
        asked = self.questions[: asking.asked(len(self.questions))]
        values: list[float] = []
        for start in range(0, len(asked), CHUNK):
            values += _answer_bits(asked[start : start + CHUNK], asking)
        result = answer_result(self.name, values, len(self.questions))
        files = _absolute([self.file])
        return Answers({f"bpb:{self.name}": replace(result, files=files)})


def _absolute(files: Iterable[Path]) -> list[str]:
    return [str(file.absolute()) for file in files]


def answer_result(
    name: str, values: list[float], total: int, shots: int = 0, own_shots: bool = True
) -> TaskResult:
    """Of the bits per byte of each right answer that was asked for, of ``total``, after ``shots``
    examples, which may be the task's own number."""
    metric = Metric.of(fmean(values), standard_error(values), higher_is_better=False)
    part = len(values) if len(values) < total else None
    column = column_of(f"bpb.{name}", None if own_shots else shots, part)
    return TaskResult(column, len(values), total, {"bpb": metric}, shots)


def _answer_bits(questions: Iterable[MultipleChoice], asking: Asking) -> list[float]:
    pairs, sizes = [], []
    for question in questions:
        asked = LanguageModeling(question.query, question.choices[question.gold])
        without, answered = prompts_of(asked, [], delimiter=" ")
        rows = asking.tokenizer.encode_batch([without, answered])
        pairs += scored_parts(asked, [[asking.tokenizer.bos_id, *row] for row in rows])
        sizes.append(len(answered[len(without) :].encode()))
    return [
        -score.logprob / math.log(2) / size
        for score, size in zip(asking.score(pairs), sizes, strict=True)
    ]


def read_texts(pattern: str, text_field: TextField) -> Texts | RightAnswers:
    """The task that a path or pattern of files names: documents, or multiple-choice questions where
    a file of JSON lines begins with one. UserError for what is neither."""
    files = expand([pattern], f"bpb:{pattern}")
    name = _name_of(pattern)
    if len(files) == 1 and files[0].suffix == ".jsonl" and holds_choices(files[0]):
        questions = read_questions(files[0], "multiple_choice")
        return RightAnswers(name, cast(list[MultipleChoice], questions), files[0])
    for file in files:
        check_suffix(file)
    return Texts(name, files, text_field).check()


def _name_of(pattern: str) -> str:
    """``corpus/book.jsonl.gz`` → ``book``; of a pattern, the folder that it searches."""
    parts = Path(pattern).expanduser().absolute().parts[1:]
    plain = list(takewhile(lambda part: part == glob.escape(part), parts))
    name = parts[-1].partition(".")[0] if len(plain) == len(parts) else "".join(plain[-1:])
    return re.sub(r"[^\w-]+", "_", name) or "text"
