"""``quant.target``: the settings under which a runtime's files hold exactly what is trained.

Every value of a weight is a whole number times half a step of its grid. What a runtime stores is
such whole numbers, in types of its own, and a scale of some block of them (the table is in
docs/methods.md). A target chooses, of the grids that its types hold, the one in fewer bits; a scale
a row is repeated in blocks where it has no rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from questtrain.config.bits import Bits
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import SCALE_DTYPES, QuantConfig
from questtrain.errors import UserError


@dataclass(frozen=True)
class Target:
    """What a file holds. ``only_weights``: quantized weights, but neither rotations, nor quantized
    activations, nor 2:4 sparsity. Of ``int_grid`` formats the grid with zero takes fewer bits;
    ``no_centred`` ones have no type for the other. In the first of ``scale_dtypes`` its arithmetic
    gives the trained values bit for bit."""

    reader: str
    only_weights: bool
    scale_dtypes: tuple[str, ...]
    groups: tuple[int, int]
    width_multiple: int = 1
    int_grid: tuple[str, ...] = ()
    no_centred: tuple[str, ...] = ()


LARGEST_GROUP = 2**20
BY_NAME = {
    "gguf": Target(
        "llama.cpp",
        only_weights=True,
        scale_dtypes=("float16",),
        groups=(32, LARGEST_GROUP),
        width_multiple=32,  # the least block of its types; wider ones are of widths they divide
        int_grid=("3", "4", "5", "6", "8"),
        no_centred=("8",),
    ),
    "onnx": Target("onnxruntime", only_weights=False, scale_dtypes=SCALE_DTYPES, groups=(16, 256)),
    "mlx": Target(
        "mlx-lm",
        only_weights=True,
        scale_dtypes=("float16", "bfloat16", "float32"),  # scale·code + bias, which fp32 rounds
        groups=(32, 128),
        width_multiple=32,
    ),
    "compressed-tensors": Target(
        "compressed-tensors",
        only_weights=True,
        scale_dtypes=SCALE_DTYPES,
        groups=(16, LARGEST_GROUP),
        width_multiple=8,  # eight codes of 4 bits a word
        int_grid=("4", "8"),
        no_centred=("8",),
    ),
}


def targeted(quant: QuantConfig, bits: Bits, given: Collection[str] = ()) -> QuantConfig:
    """The method with what its target sets; ``given`` names the settings that the user has chosen
    (``quant.grid``), which stay, for `check_target` to judge."""
    if quant.target is None or not bits.quantized:
        return quant
    target, settings = BY_NAME[quant.target], dict[str, Any]()
    if target.only_weights:
        settings["rotation"] = "none"
    if bits.weight.label in target.int_grid:
        settings["grid"] = "int"
    chosen = quant.scale_dtype in target.scale_dtypes and quant.scale_dtype != "float32"
    if quant.scale == "gaussian" and bits.weight.quantized and not chosen:
        settings["scale_dtype"] = target.scale_dtypes[0]
    return replace(quant, **{k: v for k, v in settings.items() if f"quant.{k}" not in given})


def check_target(quant: QuantConfig, bits: Bits) -> None:
    """UserError for the first setting under which the target would not hold what is trained."""
    if quant.target is None:
        return
    target, named = BY_NAME[quant.target], f"quant.target={quant.target}"
    if target.only_weights:
        _check_only_weights(quant, bits, target, named)
    if quant.grid == "centred" and bits.weight.label in target.no_centred:
        largest = bits.weight.levels - 1
        raise UserError(
            f"{named} has no type for quant.grid=centred at bits={bits}, whose integers reach"
            f" ±{largest}: leave the grid out, or choose quant.grid=int or bits=w7a16."
        )
    rounds = quant.scale == "gaussian" and bits.weight.quantized
    if rounds and quant.scale_dtype not in target.scale_dtypes:
        raise UserError(
            f"{named} stores scales in {' or '.join(target.scale_dtypes)}, and"
            f" quant.scale_dtype={quant.scale_dtype} would be rounded at export: leave it out, or"
            f" choose quant.scale_dtype={target.scale_dtypes[0]}."
        )
    _check_group(quant, bits, target, named)


def check_target_width(quant: QuantConfig, width: int) -> None:
    """UserError unless the target's blocks divide rows of ``width`` weights."""
    multiple = 1 if quant.target is None else BY_NAME[quant.target].width_multiple
    if width % multiple:
        near = max(1, round(width / multiple)) * multiple
        raise UserError(
            f"a width of {width} is no multiple of {multiple}, in blocks of which"
            f" quant.target={quant.target} stores weights; the nearest is {near}."
        )


def _check_only_weights(quant: QuantConfig, bits: Bits, target: Target, named: str) -> None:
    if bits.activation.quantized:
        weights = replace(bits, activation=replace(bits.activation, label="16"))
        raise UserError(
            f"{named} holds no quantized activations, and bits={bits} has them: choose"
            f" bits={weights}, or quant.target=onnx, which holds both."
        )
    if bits.weight.sparse:
        dense = replace(bits, weight=replace(bits.weight, sparse=False))
        raise UserError(
            f"{named} holds no 2:4 sparsity, and bits={bits} has it: choose bits={dense}, or"
            " quant.target=onnx."
        )
    if pair_rotations(bits, quant)[0] != "none":
        raise UserError(
            f"{named}: {target.reader} computes no rotation, and quant.rotation={quant.rotation}"
            f" with quant.weight_rotation={quant.weight_rotation} rotates weights: leave them out,"
            " or choose quant.rotation=none, or quant.target=onnx, which holds rotations."
        )


def _check_group(quant: QuantConfig, bits: Bits, target: Target, named: str) -> None:
    if quant.group_size is None:
        return
    low, high = target.groups
    if not low <= quant.group_size <= high:
        largest = high if high < LARGEST_GROUP else "any larger power of two"
        raise UserError(
            f"{named} has a scale for groups of {low} to {largest} columns, not of"
            f" quant.group_size={quant.group_size}; null is a scale a row."
        )
    if bits.activation.quantized:
        raise UserError(
            f"{named} multiplies the integers of bits={bits}, with one scale a row: leave"
            f" quant.group_size={quant.group_size} out, or quantize weights alone,"
            f" bits=w{bits.weight}a16."
        )
