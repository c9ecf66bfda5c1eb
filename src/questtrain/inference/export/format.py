"""What an export format is: how a `Source` is written, and how another program reads it back.

A format is a module with a class of this protocol, and its entry in
`questtrain.config.export_formats`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from questtrain.inference.export.source import Source
from questtrain.packed import DTYPES


@dataclass(frozen=True)
class Options:
    """What a format leaves open.

    ``dtype`` is of the numbers that are no codes (`DTYPES`); ``experimental`` allows files that no
    runtime here has been seen to honour; a file of weights holds at most ``shard_bytes``.
    """

    dtype: str = "f32"
    experimental: bool = False
    shard_bytes: int = 5 * 10**9

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Bound:
    """What a certificate demands of the logits: the ``largest`` absolute difference and the
    ``median`` one (None: any), and the least share of positions with the same ``argmax``. A code
    that differs is a failure always."""

    largest: float | None
    median: float | None
    argmax: float


PLAIN = {
    "f32": Bound(largest=1e-3, median=1e-4, argmax=0.995),
    "f16": Bound(largest=0.1, median=1e-2, argmax=0.98),
    "bf16": Bound(largest=0.5, median=5e-2, argmax=0.95),
}
"""Of a runtime that computes a plain Llama, by the dtype of its numbers: in f32 sums are rounded in
another order, in 16 bits everything is, activations too."""


class ExportFormat(Protocol):
    """What all formats inherit. ``runtimes`` are those of `questtrain.config.export_formats`, by
    the format's name."""

    name: str
    runtimes: dict[str, tuple[str, ...]]

    @abstractmethod
    def refusal(self, source: Source, options: Options) -> str | None:
        """Why the format cannot hold the run, or not with these options: which layer, why, which
        other format could. None where it can."""

    @abstractmethod
    def write(self, source: Source, folder: Path, options: Options) -> None:
        """Write all files into an empty ``folder``, with no more than a layer in memory."""

    @abstractmethod
    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        """What the written files hold of a layer's weight, by our name of it: fp32 values
        ``[N, K]``, and whether they are folded (`WeightCodes.folded`) or in the codes' space."""

    def is_packed(self, source: Source) -> bool | torch.dtype:
        """Whether the runtime is to be compared with `questtrain.load` of packed weights, not with
        the values they stand for (`Source.model`): in fp32 where codes multiply codes, whose
        products are the same numbers wherever they are made."""
        return source.bits.weight.quantized and source.quantizes_activations and torch.float32

    def bound(self, source: Source, options: Options, runtime: str) -> Bound:
        """How near the runtime has to come: as near as one that computes a plain Llama can."""
        return PLAIN[options.dtype]

    @abstractmethod
    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        """What the format or the runtime cannot express, in sentences for the certificate."""

    @abstractmethod
    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        """Run in a process of its own: the runtime's logits fp32 ``[T, V]`` of every prompt, token
        ids int64 ``[T]``."""


@runtime_checkable
class Tokenizes(Protocol):
    """A format whose files hold the tokenizer, too, which its runtimes encode text with."""

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        """Run in the process of `ExportFormat.logits`: the ids of every text as a prompt."""
