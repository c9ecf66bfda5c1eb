"""Which space each operand of a product is quantized in: the pairing rule (quest.md, trap 1)."""

from __future__ import annotations

from questtrain.config.bits import Bits
from questtrain.config.schema import QuantConfig
from questtrain.errors import UserError


def pair_rotations(bits: Bits, quant: QuantConfig) -> tuple[str, str]:
    """The rotation of the weight and of the activation: ``none``, ``hadamard`` (stay rotated) or
    ``hadamard-back`` (rotate, quantize, rotate back).

    ``auto`` stays rotated where both operands are quantized and rotates back where one is not.
    Raises UserError where the two would meet in different spaces.
    """
    weight, activation = quant.weight_rotation, quant.activation_rotation
    if weight == "auto":
        weight = _auto(bits.weight.quantized, bits.activation.quantized, quant, activation)
    if activation == "auto":
        activation = _auto(bits.activation.quantized, bits.weight.quantized, quant, weight)
    if (weight == "hadamard") != (activation == "hadamard"):
        raise UserError(
            f"quant.weight_rotation={weight} and quant.activation_rotation={activation} would"
            " multiply a rotated operand with an unrotated one: choose hadamard for both, or"
            " hadamard-back for the one that is rotated."
        )
    return weight, activation


def _auto(quantized: bool, partner_quantized: bool, quant: QuantConfig, partner: str) -> str:
    if partner == "hadamard":
        return "hadamard"
    if quant.rotation == "none" or not quantized:
        return "none"
    return "hadamard" if partner == "auto" and partner_quantized else "hadamard-back"
