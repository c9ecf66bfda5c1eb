"""What an export computes, compared with the run that it was made of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from questtrain.errors import TrainingStopped
from questtrain.inference.export.certificate import Certificate, Comparison, compare, hashes
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.passages import TEXTS, prompts
from questtrain.inference.export.runtime import Answer, ask, versions
from questtrain.inference.export.source import Source


class CertificateFailed(TrainingStopped):
    """The export does not compute what was trained."""


@dataclass(frozen=True)
class Written:
    """A run that a format wrote into a folder, and the runtime and device that it is compared on:
    None where no program runs the format."""

    form: ExportFormat
    source: Source
    folder: Path
    options: Options
    runtime: str | None
    device: str = "cpu"

    def certify(self) -> Certificate:
        """Compare weights, logits and tokens, the weights alone where there is no runtime;
        CertificateFailed where they are not within the bound."""
        weights, different, first = self._count_codes()
        if different:
            raise CertificateFailed(
                f"{different:,} of {weights:,} weight codes differ in the export, the first in"
                f" {first}."
            )
        comparison, texts, bound = None, None, None
        if self.runtime is not None:
            comparison, texts = self._compare(self.runtime)
            bound = self._demand(comparison, self.runtime)
        return Certificate(
            format=self.form.name,
            runtime=self.runtime,
            versions={} if self.runtime is None else versions(self.form, self.runtime),
            device=self.device,
            run=str(self.source.config.name),
            step=self.source.checkpoint.step,
            checkpoint=self.source.checkpoint.weights_sha256,
            bits=self.source.config.bits,
            dtype=self.options.dtype,
            weights=weights,
            codes_different=different,
            texts_compared=texts,
            comparison=comparison,
            bound=bound,
            not_expressed=self.form.limits(self.source, self.options, self.runtime or ""),
            files=hashes(self.folder),
        )

    def _count_codes(self) -> tuple[int, int, str | None]:
        """Weights in all layers, how many differ as codes (unquantized ones: as what the options'
        dtype makes of them), and the first layer that has some."""
        weights, different, first = 0, 0, None
        for name in self.source.linear_names():
            values, folded = self.form.stored(self.folder, name)
            codes = self.source.codes(name)
            if codes is not None:
                wrong = codes.different(values, folded)
            else:
                trained = self.source.tensor(f"{name}.weight")
                wrong = int((trained.to(self.options.torch_dtype).float() != values).sum())
            weights, different = weights + values.numel(), different + wrong
            first = first or (name if wrong else None)
        return weights, different, first

    def _compare(self, runtime: str) -> tuple[Comparison, int | None]:
        """The logits of both, and how many texts both tokenizers were seen to encode the same."""
        asked = prompts(self.source.tokenizer, self.source.config.sequence_length)
        answer = ask(self.form, self.folder, runtime, asked, self.device, TEXTS)
        texts = _compare_texts(self.source, runtime, answer)
        return compare(asked, self._trained_logits(asked), answer.logits), texts

    @torch.no_grad()
    def _trained_logits(self, asked: Sequence[Tensor]) -> Iterator[Tensor]:
        model = self.source.model(self.form.is_packed(self.source), self.device)
        for tokens in asked:
            yield model(tokens.to(self.device).unsqueeze(0))[0].float().cpu()

    def _demand(self, comparison: Comparison, runtime: str) -> Bound:
        """The bound; CertificateFailed, with where the difference begins, unless it is kept."""
        bound = self.form.bound(self.source, self.options, runtime)
        if (problem := comparison.problem(bound)) is not None:
            where = self._first_block(bound, runtime)
            raise CertificateFailed(
                f"{runtime} does not compute what was trained: {problem}. {where}"
            )
        return bound

    def _first_block(self, bound: Bound, runtime: str) -> str:
        """Where the difference begins: exports of the first 1, 2, … blocks are compared until one
        is not within the bound; by halves, because what differs early differs later."""
        right, wrong = 0, self.source.config.model.num_layers
        while wrong - right > 1:
            middle = (right + wrong) // 2
            part = self.source.first(middle)
            with tempfile.TemporaryDirectory() as scratch:
                self.form.write(part, Path(scratch), self.options)
                written = replace(self, source=part, folder=Path(scratch))
                problem = written._compare(runtime)[0].problem(bound)
            right, wrong = (middle, wrong) if problem is None else (right, middle)
        if wrong == 1:
            return "The first block, layers.0, differs already, or what lies around the blocks."
        return f"The first block that differs is layers.{wrong - 1}."


def _compare_texts(source: Source, runtime: str, answer: Answer) -> int | None:
    """The number of texts; None where the export has no tokenizer. CertificateFailed where the ids
    of one differ."""
    if answer.token_ids is None:
        return None
    tokenizer = source.tokenizer
    ours = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(TEXTS)]
    for text, wanted, found in zip(TEXTS, ours, answer.token_ids, strict=True):
        if found != wanted:
            shorter = min(len(wanted), len(found))
            place = next((i for i in range(shorter) if wanted[i] != found[i]), shorter)
            raise CertificateFailed(
                f"{runtime} encodes text otherwise than the run did: {text[:40]!r}, from token"
                f" {place} on: {found[place : place + 4]} and not {wanted[place : place + 4]}."
            )
    return len(TEXTS)
