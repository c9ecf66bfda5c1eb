"""Which columns of runs the law can be fitted to, and what it is called then.

The law is a sum of powers over a floor, A/N^α + B/D^β + E: positive, and falling as models and data
grow. Losses are of that form: cross entropy, in nats a token or bits a byte. A perplexity is the
exponential of one, so that its logarithm is fitted. An accuracy is not: it rises, from the chance
level of its task to a ceiling of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

from questtrain.errors import UserError, unknown
from questtrain.scaling.runs import Run
from questtrain.store.run_record import RunRecord

VAL_LOSS = "val_loss"
LABELS = {VAL_LOSS: "validation loss (nats/token)", "train_loss": "training loss (nats/token)"}
"""The losses of training, and what axes call them."""

BITS_PER_BYTE = ("bpb", "bits_per_byte")
RISING = frozenset(
    {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "accuracy", "exact_match", "em", "f1"}
    | {"mcc", "bleu", "chrf", "likelihood", "centred", "core", "pass@1"}
)
"""Last parts of the names of results that are better the higher they are."""

PLACE = ("non_embedding_params", "tokens")
"""Where a run lies, by its size and its data."""

VALID = (
    "valid are val_loss, train_loss, bits per byte (bpb.NAME, TASK.bits_per_byte) and perplexities,"
    " whose logarithm is fitted"
)


@dataclass(frozen=True)
class Metric:
    """A column that the law is fitted to; ``is_log``: to its logarithm."""

    column: str
    is_log: bool = False

    @property
    def label(self) -> str:
        """What axes and tables call it."""
        if self.column in LABELS:
            return LABELS[self.column]
        if self.is_log:
            return f"ln {self.column}"
        return f"{self.column} (bits/byte)" if _is_bits_per_byte(self.column) else self.column

    def value(self, run: Run) -> float | None:
        """The number of a run, in the metric's unit; None where it has none.

        UserError for one that no law can give: not positive, or not finite.
        """
        number = run.number(self.column)
        if number is None or math.isnan(number):
            return None
        value = math.log(number) if self.is_log and number > 0 else number
        if not 0 < value < math.inf:
            what = f"the logarithm of {self.column}" if self.is_log else self.column
            raise UserError(
                f"{run.name}: {self.column}={number:g}, and the law, a sum of powers, gives"
                f" {what} positive numbers alone."
            )
        return value


def metric_of(column: str, runs: Sequence[Run]) -> Metric:
    """The metric that a column of the completed runs is.

    UserError for a column that none of them has, and for one that cannot follow the law, with the
    reason and what is valid.
    """
    if column == VAL_LOSS:
        return Metric(column)
    complete = [run for run in runs if run.status == "completed"]
    if why := _why_not(column):
        raise UserError(f"metric={column} {why}; {VALID}.")
    if all(run.number(column) is None for run in complete):
        raise unknown("metric", column, valid_columns(complete))
    metric = Metric(column, is_log=_is_perplexity(column))
    if _rises(metric, complete):
        raise UserError(
            f"metric={column} rises as models and data grow, and the law falls to a floor; {VALID}."
        )
    return metric


def _why_not(column: str) -> str:
    """Why a column of this name cannot be fitted; empty where its values decide."""
    last = column.rpartition(".")[2]
    if last.endswith("_stderr"):
        return "is the standard error of a result, not a result"
    if last.split(",")[0] in RISING:
        return (
            "is better the higher it is, from the chance level to a ceiling of 1, and the law is"
            " A/N^α + B/D^β + E, which falls to a floor"
        )
    if column not in LABELS and column in {field.name for field in fields(RunRecord)}:
        return "says what a run is or how it was run, not what it reached"
    return ""


def valid_columns(runs: Sequence[Run]) -> list[str]:
    """The columns of numbers that these runs have and that may follow the law."""
    columns = dict.fromkeys([VAL_LOSS, *(column for run in runs for column in run.record)])
    return [
        column
        for column in columns
        if not _why_not(column)
        and column != "precision"
        and any(run.number(column) is not None for run in runs)
    ]


def is_evaluated(column: str) -> bool:
    """Whether it is by its name a loss that an evaluation measured: of other columns a table's
    owner alone knows what they are."""
    return _is_bits_per_byte(column) or _is_perplexity(column)


def _is_perplexity(column: str) -> bool:
    return "perplexity" in column.rpartition(".")[2]


def _is_bits_per_byte(column: str) -> bool:
    parts = column.split(".")
    return parts[0] in BITS_PER_BYTE or parts[-1] in BITS_PER_BYTE


def _rises(metric: Metric, runs: Sequence[Run]) -> bool:
    """Whether it is higher in most pairs of runs of one precision of which one is the larger, with
    as much data at least, or has more data at the same size."""
    places = []
    for run in runs:
        value, size, data = (run.number(c) for c in (metric.column, *PLACE))
        if value is not None and size is not None and data is not None:
            places.append((run.precision, size, data, value))
    higher = lower = 0
    for one, other in combinations(places, 2):
        small, large = sorted((one, other), key=lambda place: place[1:3])
        if small[0] == large[0] and small[1:3] != large[1:3] and small[2] <= large[2]:
            higher += large[3] > small[3]
            lower += large[3] < small[3]
    return higher > lower
