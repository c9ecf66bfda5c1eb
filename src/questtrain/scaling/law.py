"""The scaling law: loss as a function of parameters N, tokens D and precision P.

    L(N, D, P) = A / (N·eff(P))^α + B / D^β + E,    eff(16) = 1

(equation 5 of the paper). Two variants for comparison: ``chinchilla``, the same law of BF16 runs
alone, and ``free-alpha``, in which every precision has an A·eff^-α and an α of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from questtrain.errors import UserError, unknown
from questtrain.scaling.precision import REFERENCE
from questtrain.store.files import write_json
from questtrain.store.json_object import DamagedJson, JsonObject, read_json_object

Array: TypeAlias = NDArray[np.float64]

TINY = sys.float_info.min
"""The smallest of positive numbers."""

FORMS = ("quest", "chinchilla", "free-alpha")


@dataclass(frozen=True)
class Estimate:
    """A fitted number and its interval; without one (no bootstrap), low and high are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Estimate:
        """The estimate of ``factor`` (positive) times the number."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Estimate(factor * self.value, low, high)


@dataclass(frozen=True)
class Law:
    """A fitted law; ``A`` and ``B`` go with N in parameters and D in tokens, losses in nats.

    ``eff`` holds every precision but the reference, by label. In the form ``free-alpha``,
    ``alpha_of`` holds the α of each (``alpha`` is the reference's), and eff depends on the size:
    it is meant at ``eff_at`` parameters. ``leave_one_out`` is the rms of the log residuals of
    points predicted without them. ``params_range`` and ``tokens_range`` are those of the data;
    ``draws`` are bootstrap samples of the numbers, by name (``A``, …, ``eff 4``, ``alpha 4``).
    """

    form: str
    A: Estimate
    alpha: Estimate
    B: Estimate
    beta: Estimate
    E: Estimate
    eff: Mapping[str, Estimate]
    rms_log_residual: float
    points: int
    confidence: float | None = None
    leave_one_out: float | None = None
    alpha_of: Mapping[str, Estimate] = field(default_factory=dict)
    eff_at: float | None = None
    params_range: tuple[float, float] | None = None
    tokens_range: tuple[float, float] | None = None
    draws: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
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
        """Predicted loss in nats; ``params`` and ``tokens`` broadcast against each other."""
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
        return _law(read_json_object(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except DamagedJson as error:
        raise UserError(
            f"{path} is not a law of `questtrain fit --json FILE`: {error.problem}."
        ) from error


def _law(content: JsonObject) -> Law:
    """The numbers within what a law allows: sizes and exponents are positive."""
    form = content.take("form", str)
    if form not in FORMS:
        raise unknown("form of law", form, FORMS)
    A, alpha, B, beta = (_estimate(content.inside(key)) for key in ("A", "alpha", "B", "beta"))
    E = _estimate(content.inside("E"), may_be_zero=True)
    effs, alphas = content.inside("eff"), _optional(content, "alpha_of")
    draws, warnings = _optional(content, "draws"), content.optional("warnings", list) or []
    return Law(
        form=form,
        A=A,
        alpha=alpha,
        B=B,
        beta=beta,
        E=E,
        eff={label: _estimate(effs.inside(label)) for label in effs.values},
        rms_log_residual=content.take("rms_log_residual", float, low=0),
        points=content.take("points", int, low=0),
        confidence=content.optional("confidence", float, low=0, high=1),
        leave_one_out=content.optional("leave_one_out", float, low=0),
        alpha_of={label: _estimate(alphas.inside(label)) for label in alphas.values},
        eff_at=content.optional("eff_at", float, low=TINY),
        params_range=_pair(content, "params_range"),
        tokens_range=_pair(content, "tokens_range"),
        draws={key: tuple(draws.items(key, float, low=0)) for key in draws.values},
        warnings=tuple(content.check("warnings", text, str) for text in warnings),
    )


def _optional(content: JsonObject, key: str) -> JsonObject:
    """The object of ``key``, empty where there is none."""
    return content.inside(key) if key in content.values else JsonObject({}, content.path)


def _pair(content: JsonObject, key: str) -> tuple[float, float] | None:
    if content.optional(key, list) is None:
        return None
    pair = content.items(key, float, low=0)
    if len(pair) != 2 or pair[0] > pair[1]:
        raise content.damaged(f"{key!r} holds {pair}, not a smallest and a largest number")
    return pair[0], pair[1]


def _estimate(entry: JsonObject, may_be_zero: bool = False) -> Estimate:
    low = 0.0 if may_be_zero else TINY
    ends = [entry.take_or_none(key, float, low=0) for key in ("low", "high")]
    return Estimate(entry.take("value", float, low), *ends)
