"""Settings that all commands share which use a trained model."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from questtrain.config.ranges import Interval
from questtrain.config.schema import SWITCH

AtStep: TypeAlias = Annotated[int | None, Interval("[0, 2^53]"), "the checkpoint; null: the newest"]

Packed: TypeAlias = Annotated[
    str,
    SWITCH,
    "weights as packed codes, in the low-bit kernels; auto: where the kernels run and the model's"
    " weights are quantized",
]

PACKED = {"auto": None, "true": True, "false": False}
"""What a `Packed` asks of `questtrain.inference.load.load_run`."""
