"""``certificate.json``: that what was written computes what was trained.

The same prompts go through the run's own model and through the runtime that the export is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.inference.export.format import Bound
from questtrain.store.files import sha256_of, write_json
from questtrain.store.json_file import read_json

FILE = "certificate.json"
CARD = "README.md"


@dataclass(frozen=True)
class Comparison:
    """Two runtimes on the same prompts: absolute differences of the logits, the share of positions
    whose most likely token is the same, and the perplexity of the prompts by each."""

    positions: int
    largest_logit_difference: float
    median_logit_difference: float
    argmax_agreement: float
    perplexity_trained: float
    perplexity_exported: float

    def problem(self, bound: Bound) -> str | None:
        """What is not within the bound, in words. NaN never is."""
        checks = (
            ("largest logit difference", self.largest_logit_difference, bound.largest),
            ("median logit difference", self.median_logit_difference, bound.median),
            ("argmax disagreement", 1 - self.argmax_agreement, 1 - bound.argmax),
        )
        for what, found, most in checks:
            if most is not None and not found <= most + 1e-12:
                return f"the {what} is {found:.3g}, and at most {most:.3g} is allowed"
        return None


@dataclass(frozen=True)
class Certificate:
    """What was compared, with what, and what came out. ``run`` names the run, ``checkpoint`` is its
    weights' SHA-256, ``files`` those of the export, ``weights`` and ``codes_different`` are counts
    over all layers, ``texts_compared`` is of how many texts the export's own tokenizer made the
    same ids (None: it has none), ``not_expressed`` what the format or the runtime cannot say. A
    format that no program here runs has no runtime, no comparison and no bound."""

    format: str
    runtime: str | None
    versions: dict[str, str]
    device: str
    run: str
    step: int
    checkpoint: str
    bits: str
    dtype: str
    weights: int
    codes_different: int
    texts_compared: int | None
    comparison: Comparison | None
    bound: Bound | None
    not_expressed: list[str]
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def read_certificate(folder: Path) -> Certificate:
    """FileNotFoundError where there is none, DamagedJson where it is damaged."""
    return read_json(folder / FILE, Certificate)


def compare(
    prompts: Sequence[Tensor], trained: Iterable[Tensor], exported: Iterable[Tensor]
) -> Comparison:
    """Logits ``[T, V]`` of every prompt ``[T]`` by both. A runtime may pad the vocabulary: what it
    gives beyond ours is not compared."""
    differences, equal, losses = [], [], torch.zeros(2, dtype=torch.float64)
    for tokens, ours, theirs in zip(prompts, trained, exported, strict=True):
        theirs = theirs[:, : ours.shape[1]].float()
        differences.append((ours - theirs).abs().flatten())
        equal.append(ours.argmax(-1) == theirs.argmax(-1))
        for place, logits in enumerate((ours, theirs)):
            losses[place] += F.cross_entropy(logits[:-1], tokens[1:], reduction="sum").double()
    difference, positions = torch.cat(differences), torch.cat(equal)
    predicted = sum(len(tokens) - 1 for tokens in prompts)
    perplexities = [math.exp(loss / predicted) for loss in losses.tolist()]
    return Comparison(
        positions=len(positions),
        largest_logit_difference=float(difference.max()),
        median_logit_difference=float(difference.median()),
        argmax_agreement=float(positions.double().mean()),
        perplexity_trained=perplexities[0],
        perplexity_exported=perplexities[1],
    )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an export but its certificate and its card, which whoever publishes
    it edits; by its path in the folder."""
    unnamed = (folder / FILE, folder / CARD)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in unnamed)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}
