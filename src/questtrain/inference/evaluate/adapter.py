"""A trained model as lm-evaluation-harness knows models: it asks for log-likelihoods and texts.

The questions are those of its Hugging Face models (`HFLM`), with two differences. Every text begins
with BOS, once, whatever a tokenizer's own settings are: `HFLM` puts a second one before texts whose
log-likelihood is rolled, and scores the first. And an answer may be longer than the trained length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from questtrain.errors import UserError
from questtrain.inference.evaluate.generation import Decoding, Generator
from questtrain.inference.evaluate.prompts import encode_pairs, encode_prompts
from questtrain.inference.evaluate.score import Scorer
from questtrain.inference.load import TrainedModel

MAX_NEW_TOKENS = 256
"""Of an answer where its task says nothing, as `HFLM`'s."""

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
"""What a task may say of its answers."""


class HarnessModel(LM):  # type: ignore[misc]
    """``seed`` is of sampled answers. ``was_asked`` tells whether the model had anything to do;
    ``told`` hears how many rows each batch had."""

    def __init__(
        self,
        trained: TrainedModel,
        batch_tokens: int | None,
        seed: int,
        told: Callable[[int], object] = lambda count: None,
    ) -> None:
        super().__init__()
        self.tokens_of = trained.tokenizer
        self.scorer = Scorer(trained, batch_tokens)
        self.generator = Generator(trained, batch_tokens)
        self.seed, self.was_asked, self.told = seed, False, told
        self._device = self.scorer.device

    @property
    def max_length(self) -> int:
        """Tokens of context and answer."""
        return self.scorer.length

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation after its context."""
        pairs = encode_pairs(self.tokens_of, [request.args for request in requests])
        return [(score.logprob, score.greedy) for score in self._scores(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole documents."""
        documents = encode_prompts(self.tokens_of, [request.args[0] for request in requests])
        scores = self._scores([(document[:1], document[1:]) for document in documents])
        return [score.logprob for score in scores]

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        self.was_asked = True
        with _progress("scoring", "rows", self.told) as advance:
            return self.scorer.score(pairs, advance)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each prompt, by the settings that its task gives."""
        wanted = [decoding(each.task_name, each.args[1], self.seed) for each in requests]
        self.was_asked = True
        answers = [""] * len(requests)
        with _progress("answering", "prompts", self.told) as advance:
            for how in dict.fromkeys(wanted):
                places = [place for place, each in enumerate(wanted) if each == how]
                texts = [requests[place].args[0] for place in places]
                prompts = encode_prompts(self.tokens_of, texts)
                found = self.generator.continuations(prompts, how, advance)
                for place, answer in zip(places, found, strict=True):
                    answers[place] = answer
        return answers


def decoding(task: str | None, settings: dict[str, Any], seed: int) -> Decoding:
    """How a task's prompts are answered; UserError where it asks for what is not done here."""
    given = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
    samples = bool(given.get("do_sample"))
    for key, value in given.items():
        has_effect = (key, value) != ("num_beams", 1) and (samples or key != "top_k")
        if key not in KNOWN and has_effect:
            raise UserError(
                f"the task {task} asks for answers with {key}={value!r}; what is known here is"
                f" {', '.join(KNOWN)}."
            )
    return Decoding(
        max_new_tokens=given["max_gen_toks"],
        until=tuple(str(text) for text in given["until"]),
        temperature=float(given.get("temperature") or 1.0) if samples else 0.0,
        top_p=float(given.get("top_p") or 1.0) if samples else 1.0,
        seed=seed,
    )


@contextmanager
def _progress(
    what: str, unit: str, told: Callable[[int], object]
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal that counts what its function is told, which ``told`` hears, too; its end
    is not known before the rows are made."""
    with tqdm(desc=what, unit=f" {unit}", disable=None, leave=False) as bar:

        def advance(count: int) -> None:
            bar.update(count)
            told(count)

        yield advance
