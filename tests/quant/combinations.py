"""Every method with every format that it can be composed with, and what it is in the reference."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from questtrain.config import QuantConfig
from questtrain.quant import QuantLinear
from questtrain.quant.method import method_config
from tests.quant.quest_reference import ALPHA, ALPHA_WITH_ZERO, Recipe

# What conf/method/*.yaml must mean, in the reference's words; quest alone rotates.
METHODS: dict[str, dict[str, Any]] = {
    "quest": {},
    "quest-noht": {},
    "clip": {"trust_scale": 1.0},
    "ste": {"trust_scale": float("inf")},
    "lsq": {"learned": "step"},
    "lsq-plus": {"learned": "step", "offset": True},
    "pact": {"learned": "clip"},
}
LEARNED = ("lsq", "lsq-plus", "pact")


@dataclass(frozen=True)
class Combination:
    """A method, the formats of weight and activation, and settings that differ from the method's.

    ``rotations`` are those of weight and activation; by default what the method chooses.
    """

    method: str
    bits: str
    grid: str = "centred"
    rotations: tuple[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> QuantConfig:
        overrides = {"grid": self.grid, **self.settings}
        if self.rotations is not None:
            rotates = any("hadamard" in rotation for rotation in self.rotations)
            overrides["rotation"] = "hadamard" if rotates else "none"
            overrides["weight_rotation"], overrides["activation_rotation"] = self.rotations
        return dataclasses.replace(method_config(self.method), **overrides)

    def layer(
        self, width: int, outputs: int, dtype: torch.dtype = torch.float32, **arguments: Any
    ) -> QuantLinear:
        """A `QuantLinear` of this combination."""
        config = self.config()
        return QuantLinear(width, outputs, bits=self.bits, method=config, dtype=dtype, **arguments)

    def recipes(self) -> tuple[Recipe, Recipe]:
        """What the weight and the activation are in the reference."""
        parts = re.fullmatch(r"w(fp4|[\d.]+)(s24)?a(fp4|[\d.]+)", self.bits)
        assert parts is not None
        weight, sparse, activation = parts.groups()
        rotations = self.rotations or self._chosen_rotations(weight, activation)
        changed = {key.removeprefix("activation_"): value for key, value in self.settings.items()}
        meaning = METHODS[self.method] | changed
        zero = self.grid == "int"
        of_weight = {**meaning, "sparse": sparse is not None, "offset": False}
        of_activation = {k: v for k, v in meaning.items() if k not in ("group_size", "scale_dtype")}
        return (
            Recipe(weight, rotations[0], zero, **of_weight),
            Recipe(activation, rotations[1], zero, **of_activation),
        )

    def _chosen_rotations(self, weight: str, activation: str) -> tuple[str, str]:
        if self.method != "quest":
            return "none", "none"
        if weight == "16":
            return "none", "hadamard-back"
        return ("hadamard-back", "none") if activation == "16" else ("hadamard", "hadamard")

    def __str__(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        grid = [self.grid] if self.grid != "centred" else []
        return "-".join([self.method, self.bits, *grid, *(self.rotations or ()), *settings])


def _both_quantized() -> list[Combination]:
    """Each method with each format in both operands: both grids, FP4, and sparse weights."""
    grids = {"centred": [*ALPHA, "fp4"], "int": [*ALPHA_WITH_ZERO]}
    return [
        Combination(method, f"w{label}{sparse}a{label}", grid)
        for method in METHODS
        for grid, labels in grids.items()
        for label in labels
        for sparse in (("",) if method in LEARNED else ("", "s24"))
    ]


def _one_quantized() -> list[Combination]:
    """Each method with one operand in 16 bits."""
    labels = ("w1a16", "w1.58a16", "w2a16", "wfp4a16", "w16a1", "w16a4", "w16a8", "w16afp4")
    dense = [Combination(method, bits) for method in METHODS for bits in labels]
    return dense + [
        Combination(method, bits)
        for method in METHODS
        if method not in LEARNED
        for bits in ("w4s24a16", "wfp4s24a16")
    ]


COMBINATIONS = _both_quantized() + _one_quantized()


def _stored(group_size: int | None, scale_dtype: str = "float32") -> dict[str, Any]:
    return {"group_size": group_size, "scale_dtype": scale_dtype}


BACK = ("hadamard-back", "hadamard-back")
STAY = ("hadamard", "hadamard")
VARIANTS = [
    Combination("quest", "w2a8"),
    Combination("quest", "w8a1"),
    Combination("quest", "wfp4a8"),
    Combination("quest", "w2s24afp4"),
    Combination("quest", "w4a4", rotations=BACK),
    Combination("quest", "w4a4", rotations=("none", "hadamard-back")),
    Combination("quest", "w4s24a4", rotations=BACK),
    Combination("quest", "wfp4afp4", rotations=("hadamard-back", "none")),
    Combination("quest", "w4a16", rotations=STAY),
    Combination("quest-noht", "w3a16"),
    Combination("quest", "w4a4", settings={"trust_error": 0.1}),
    Combination("quest", "w4a4", settings={"trust_scale": 0.8}),
    Combination("quest", "w3a3", "int", settings={"trust_error": 0.2}),
    Combination("quest", "wfp4afp4", settings={"trust_error": 0.4871}),
    Combination("quest", "wfp4afp4", settings={"trust_scale": 1.1}),
    Combination("quest", "w4s24a4", settings={"trust_error": 0.5}),
    Combination("quest", "w4s24a4", settings={"trust_scale": 1.1}),
    *(Combination(method, "w4a4", rotations=STAY) for method in LEARNED),
    *(Combination(method, "w3a8", "int", rotations=BACK) for method in LEARNED),
    *(Combination(method, "w2afp4", rotations=("none", "hadamard-back")) for method in LEARNED),
    Combination("pact", "w4a4", settings={"activation_offset": True}),
    Combination("quest-noht", "w4a4", settings=_stored(32)),
    Combination("quest", "w8a8", settings=_stored(None, "float16")),
    Combination("quest", "w3a3", "int", settings=_stored(None, "bfloat16")),
    Combination("quest", "w2a16", settings=_stored(256, "float16")),
    Combination("quest", "wfp4afp4", settings=_stored(128, "float16")),
    Combination("quest-noht", "w4s24a16", settings=_stored(32, "bfloat16")),
    Combination("quest-noht", "w4a16", "int", settings=_stored(32, "float16")),
    Combination("ste", "w1.58a1.58", settings=_stored(64)),
    Combination("clip", "w5a16", settings=_stored(64) | {"trust_error": 0.1, "trust_scale": None}),
]
PARTS_OF_A_ROTATION = [
    Combination("quest", "w4a4", settings=_stored(32)),
    Combination("quest", "w1a16", settings=_stored(16, "float16")),
    Combination("quest", "wfp4afp4", settings=_stored(64)),
    Combination("quest", "w4s24a4", settings=_stored(32)),
]
"""Groups that are smaller than a Hadamard block: of rows that leave some of them empty, only
rounding errors are quantized there."""
