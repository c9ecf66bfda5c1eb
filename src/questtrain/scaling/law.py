"""The scaling law: loss as a function of parameters N, tokens D and precision P.

    L(N, D, P) = A / (N·eff(P))^α + B / D^β + E,    eff(16) = 1

(equation 5 of the paper). Two variants for comparison: ``chinchilla``, the same law of BF16 runs
alone, and ``free-alpha``, in which every precision has an A·eff^-α and an α of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from annotated_types import Interval, MinLen
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator

from questtrain.errors import UserError, unknown
from questtrain.scaling.precision import REFERENCE
from questtrain.store.files import write_json
from questtrain.store.json_file import Count, DamagedJson, NotNegative, Positive, read_json

Array: TypeAlias = NDArray[np.float64]

FORMS = ("quest", "chinchilla", "free-alpha")


@dataclass(frozen=True)
class Estimate:
    """A fitted number and its interval; without one (no bootstrap), low and high are None."""

    value: NotNegative
    low: NotNegative | None = None
    high: NotNegative | None = None

    def times(self, factor: float) -> Estimate:
        """The estimate of ``factor`` (positive) times the number."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Estimate(factor * self.value, low, high)


def _known_form(form: str) -> str:
    if form not in FORMS:
        raise unknown("form of law", form, FORMS)
    return form


def _positive(estimate: Estimate) -> Estimate:
    if not estimate.value:
        raise ValueError("should be of a positive value")
    return estimate


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("should be a smallest and a largest number")
    return ends


PositiveEstimate: TypeAlias = Annotated[Estimate, AfterValidator(_positive)]
Range: TypeAlias = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_ordered)]


@dataclass(frozen=True)
class Law:
    """A fitted law; ``A`` and ``B`` go with N in parameters and D in tokens, losses are in nats a
    token, or whatever the column ``metric`` is in (the logarithm of a perplexity).

    ``eff`` holds every precision but the reference, by label. In the form ``free-alpha``,
    ``alpha_of`` holds the α of each (``alpha`` is the reference's), and eff depends on the size:
    it is meant at ``eff_at`` parameters. ``leave_one_out`` is the rms of the log residuals of
    points predicted without them. ``params_range`` and ``tokens_range`` are those of the data;
    ``draws`` are bootstrap samples of the numbers, by name (``A``, …, ``eff 4``, ``alpha 4``).
    """

    form: Annotated[str, AfterValidator(_known_form)]
    A: PositiveEstimate
    alpha: PositiveEstimate
    B: PositiveEstimate
    beta: PositiveEstimate
    E: Estimate
    eff: Mapping[str, PositiveEstimate]
    rms_log_residual: NotNegative
    points: Count
    confidence: Annotated[float, Interval(ge=0, le=1)] | None = None
    leave_one_out: NotNegative | None = None
    alpha_of: Mapping[str, PositiveEstimate] = field(default_factory=dict)
    eff_at: Positive | None = None
    params_range: Range | None = None
    tokens_range: Range | None = None
    draws: Mapping[str, Annotated[tuple[NotNegative, ...], MinLen(1)]] = field(default_factory=dict)
    metric: str = "val_loss"
    warnings: tuple[str, ...] = ()

    @property
    def precisions(self) -> list[str]:
        """The labels that the law knows, the reference included."""
        return [*self.eff, REFERENCE]

    def efficiency(self, precision: str) -> Estimate:
        """eff(P); UserError for a precision that was not fitted."""
        if precision == REFERENCE:
            return Estimate(1.0)
        if precision not in self.eff:
            raise unknown("precision of this law", precision, self.precisions)
        return self.eff[precision]

    def loss(self, params: ArrayLike, tokens: ArrayLike, precision: str) -> Array:
        """Predicted loss; ``params`` and ``tokens`` broadcast against each other."""
        numbers = {key: np.array(estimate.value) for key, estimate in self._estimates().items()}
        return self._loss(numbers, params, tokens, precision)

    def loss_draws(self, params: float, tokens: float, precision: str) -> Array:
        """The loss that each bootstrap sample predicts, [draws]; empty where there are none."""
        draws = {key: np.array(values) for key, values in self.draws.items()}
        return self._loss(draws, params, tokens, precision) if draws else np.empty(0)

    def _loss(
        self, numbers: Mapping[str, Array], params: ArrayLike, tokens: ArrayLike, precision: str
    ) -> Array:
        self.efficiency(precision)
        eff = numbers.get(f"eff {precision}", np.array(1.0))
        own_alpha = numbers.get(f"alpha {precision}", numbers["alpha"])
        sizes, data = (np.asarray(n, dtype=np.float64) for n in (params, tokens))
        pivot = self.eff_at or 1.0
        at_pivot = numbers["A"] * (pivot * eff) ** -numbers["alpha"]
        size_term = at_pivot * (sizes / pivot) ** -own_alpha
        predicted: Array = size_term + numbers["B"] * data ** -numbers["beta"] + numbers["E"]
        return predicted

    def _estimates(self) -> dict[str, Estimate]:
        """Every fitted number by the name it has in ``draws``."""
        shared = {"A": self.A, "alpha": self.alpha, "B": self.B, "beta": self.beta, "E": self.E}
        effs = {f"eff {label}": estimate for label, estimate in self.eff.items()}
        return shared | effs | {f"alpha {label}": e for label, e in self.alpha_of.items()}


def write_law(law: Law, path: Path) -> None:
    """``law.json``, whole or not at all."""
    write_json(path, law_record(law))


def law_record(law: Law) -> dict[str, Any]:
    """The law as JSON holds it."""
    return asdict(law) | {"warnings": list(law.warnings)}


def read_law(path: Path) -> Law:
    """A ``law.json``; UserError for a file that is none."""
    try:
        return read_json(path, Law)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except DamagedJson as error:
        raise UserError(
            f"{path} is not a law of `questtrain fit --json FILE`: {error.problem}."
        ) from error
