"""Deterministic batches from token shards.

A shard of n tokens holds ⌊(n - 1) / T⌋ windows; window i reads tokens i·T … i·T + T, so that every
input position is used once and its target is the token after it. Sample s of a run (batch t holds
samples t·B … t·B + B - 1) belongs to epoch ⌊s / windows⌋ and reads the window at which that
epoch's permutation puts it: a pure function of (data, seed, t), and of which batches are skipped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from questtrain.data.permutation import permute
from questtrain.data.shards import Shard
from questtrain.errors import UserError
from questtrain.store.patience import read_patiently


class Windows:
    """All windows of T + 1 tokens of some shards, by number."""

    def __init__(self, shards: Iterable[Shard], sequence_length: int) -> None:
        self.shards = tuple(shards)
        self.sequence_length = sequence_length
        per_shard = [max(0, shard.num_tokens - 1) // sequence_length for shard in self.shards]
        self.ends: NDArray[np.int64] = np.cumsum(per_shard, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the windows ``numbers`` (int64 [k]): int64 [k, T + 1].

        UserError for an id beyond the vocabulary and for a shard that is not as it was when it was
        opened; ReadFailed where a disk fails for long.
        """
        length = self.sequence_length
        places = self._places(numbers)
        out = read_patiently(self.shards[0].path, lambda _: _read_rows(places, length + 1))
        limit = self.shards[0].vocab_size
        if limit is not None and out.max(initial=0) >= limit:
            row, column = divmod(int(out.argmax()), length + 1)
            shard, start = places[row]
            raise shard.beyond_vocabulary(int(out[row, column]), start + column)
        return out

    def _places(self, numbers: NDArray[np.int64]) -> list[tuple[Shard, int]]:
        """For each window the shard that holds it, and its first token there."""
        indices = np.searchsorted(self.ends, numbers, side="right")
        firsts = np.concatenate([np.zeros(1, np.int64), self.ends])[indices]
        starts = (numbers - firsts) * self.sequence_length
        shards = [self.shards[index] for index in indices.tolist()]
        return list(zip(shards, starts.tolist(), strict=True))

    def require_one(self, what: str) -> None:
        """Raise UserError unless there is at least one window."""
        if len(self) == 0:
            longest = max((shard.num_tokens for shard in self.shards), default=0)
            raise UserError(
                f"the {what} data is smaller than one window: sequence_length="
                f"{self.sequence_length} needs {self.sequence_length + 1:,} tokens in one shard, "
                f"the longest shard has {longest:,}. Lower sequence_length or add data"
            )


def _read_rows(places: Sequence[tuple[Shard, int]], width: int) -> NDArray[np.int64]:
    """``width`` tokens from each place (shard, first token) on: int64 [places, width]. The shards
    are looked at once more after the reads, so that what was changed meanwhile is not taken."""
    out = np.empty((len(places), width), np.int64)
    buffers = {dtype: np.empty(width, dtype) for dtype in {shard.dtype for shard, _ in places}}
    for row, (shard, start) in enumerate(places):
        buffer = buffers[shard.dtype]
        shard.read_into(buffer, start)
        out[row] = buffer
    for shard in {id(shard): shard for shard, _ in places}.values():
        shard.require_unchanged()
    return out


class Loader:
    """The training batches of one run; see the module's docstring for their order."""

    def __init__(
        self, shards: Iterable[Shard], batch_size: int, sequence_length: int, seed: int
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self._windows = Windows(shards, sequence_length)
        self._windows.require_one("training")
        self.skip(())

    def skip(self, numbers: Sequence[int]) -> None:
        """Leave out the batches of these numbers, in ascending order, and no others: those after
        them move up."""
        self._kept_before = [number - index for index, number in enumerate(numbers)]

    def number(self, step: int) -> int:
        """Which batch ``step`` takes: ``step`` itself where none before it is skipped."""
        return step + bisect_right(self._kept_before, step)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self._windows)

    def epoch(self, step: int) -> int:
        """Epoch, from 0, of the first sample of batch ``step``."""
        return self.number(step) * self.batch_size // self.num_windows

    def batch(self, step: int, rows: slice = slice(None)) -> NDArray[np.int64]:
        """Rows ``rows`` of the batch at ``step``: int64 [rows, T + 1], inputs and last target.

        A rank or a micro-batch asks for its rows only; together they are the same batch.
        """
        row_numbers = np.arange(self.batch_size, dtype=np.int64)[rows]
        samples = row_numbers + self.number(step) * self.batch_size
        epoch, position = np.divmod(samples, self.num_windows)
        windows = permute(position, self.num_windows, self.seed, epoch)
        return self._windows.read(windows.astype(np.int64))


def passes(shards: Iterable[Shard], sequence_length: int, samples: int) -> float:
    """How often a run of so many samples reads each window, on average: its epochs."""
    return samples / max(1, len(Windows(shards, sequence_length)))


def validation_batches(
    shards: Iterable[Shard],
    batch_size: int,
    sequence_length: int,
    max_tokens: int,
    rows: slice = slice(None),
) -> Iterator[NDArray[np.int64]]:
    """⌊max_tokens / T⌋ windows (at least one), evenly spread, in order, as int64 [rows, T + 1].

    Always the same windows, so that losses compare across runs; the last batch may be shorter.
    A rank asks for its ``rows`` of each batch; of a short one they may be none.
    """
    windows = Windows(shards, sequence_length)
    windows.require_one("validation")
    count = min(len(windows), max(1, max_tokens // sequence_length))
    numbers = np.arange(count, dtype=np.int64) * len(windows) // count
    for start in range(0, count, batch_size):
        yield windows.read(numbers[start : start + batch_size][rows])
