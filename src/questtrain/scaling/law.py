"""The scaling law: loss as a function of parameters N, tokens D and precision P.

    L(N, D, P) = A / (N·eff(P))^α + B / D^β + E,    eff(16) = 1

(equation 5 of the paper). Two variants for comparison: ``chinchilla``, the same law of BF16 runs
alone, and ``free-alpha``, in which every precision has an A·eff^-α and an α of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from questtrain.errors import UserError, unknown
from questtrain.scaling.precision import REFERENCE
from questtrain.store.files import write_json

FORMS = ("quest", "chinchilla", "free-alpha")


@dataclass(frozen=True)
class Estimate:
    """A fitted number and its interval; without one (no bootstrap), low and high are None."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Law:
    """A fitted law; ``A`` and ``B`` go with N in parameters and D in tokens, losses in nats.

    ``eff`` holds every precision but the reference, by label. In the form ``free-alpha``,
    ``alpha_of`` holds the α of each (``alpha`` is the reference's), and eff depends on the size:
    it is meant at ``eff_at`` parameters. ``leave_one_out`` is the rms of the log residuals of
    points predicted without them.
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
    warnings: tuple[str, ...] = ()

    @property
    def precisions(self) -> list[str]:
        """The labels that the law knows, the reference included."""
        return [*self.eff, REFERENCE]

    def efficiency(self, precision: str) -> float:
        """eff(P); UserError for a precision that was not fitted."""
        if precision == REFERENCE:
            return 1.0
        if precision not in self.eff:
            raise unknown("precision of this law", precision, self.precisions)
        return self.eff[precision].value

    def loss(self, params: ArrayLike, tokens: ArrayLike, precision: str) -> NDArray[np.float64]:
        """Predicted loss in nats; ``params`` and ``tokens`` broadcast against each other."""
        eff, sizes = self.efficiency(precision), np.asarray(params, dtype=np.float64)
        if precision in self.alpha_of and self.eff_at is not None:
            size = self.A.value * (self.eff_at * eff) ** -self.alpha.value
            size = size * (sizes / self.eff_at) ** -self.alpha_of[precision].value
        else:
            size = self.A.value * (sizes * eff) ** -self.alpha.value
        data = self.B.value * np.asarray(tokens, dtype=np.float64) ** -self.beta.value
        predicted: NDArray[np.float64] = np.asarray(size + data + self.E.value)
        return predicted


def write_law(law: Law, path: Path) -> None:
    """``law.json``, whole or not at all."""
    write_json(path, law_record(law))


def law_record(law: Law) -> dict[str, Any]:
    """The law as JSON holds it."""
    return asdict(law) | {"warnings": list(law.warnings)}


def read_law(path: Path) -> Law:
    """A ``law.json``; UserError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    try:
        return _law(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a law of `questtrain fit --json FILE`: {error!r} is missing or wrong."
        ) from error


def _law(content: Any) -> Law:
    if content["form"] not in FORMS:
        raise unknown("form of law", content["form"], FORMS)
    return Law(
        form=content["form"],
        **{key: _estimate(content[key]) for key in ("A", "alpha", "B", "beta", "E")},
        eff={label: _estimate(entry) for label, entry in content["eff"].items()},
        rms_log_residual=float(content["rms_log_residual"]),
        points=int(content["points"]),
        confidence=content.get("confidence"),
        leave_one_out=content.get("leave_one_out"),
        alpha_of={k: _estimate(entry) for k, entry in content.get("alpha_of", {}).items()},
        eff_at=content.get("eff_at"),
        warnings=tuple(content.get("warnings", ())),
    )


def _estimate(entry: Any) -> Estimate:
    numbers = [
        None if entry[key] is None else float(entry[key]) for key in ("value", "low", "high")
    ]
    value, low, high = numbers
    if value is None or not math.isfinite(value):
        raise ValueError(f"value {value}")
    return Estimate(value, low, high)
