"""`convert`: the linear layers of any PyTorch model become quantized ones, in place.

Everything is looked at and checked before the first layer changes. A layer stays the same object
and only its class changes, so that hooks, attributes, ties and whoever refers to it are kept.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from torch import Tensor, nn

from questtrain.config import Bits, QuantConfig, pair_rotations, parse_bits, validate_quant
from questtrain.errors import UserError
from questtrain.quant.conv1d import QuantConv1D
from questtrain.quant.foreign import (
    check_wrappers,
    is_quantized,
    own_matrices,
    reason_left,
    takes,
)
from questtrain.quant.layer_names import (
    bare_name,
    check_no_adapter,
    listed,
    output_heads,
    skip_pattern,
    skipped_modules,
)
from questtrain.quant.linear import QuantLinear, operand_quantizers
from questtrain.quant.method import method_config
from questtrain.quant.quantizer import Quantizer, Unquantized
from questtrain.quant.scale import learned_parameters

log = logging.getLogger(__name__)

Pair: TypeAlias = tuple[Quantizer | Unquantized, Quantizer | Unquantized]


@dataclass
class Survey:
    """The patterns of what stays, and the layers of a model: those to convert and their names,
    those that convert cannot take by the reason, the output heads that stay, and the bits of those
    that are quantized already."""

    patterns: Sequence[str]
    layers: dict[nn.Module, str] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    quantized: dict[str, Bits] = field(default_factory=dict)


def convert(
    module: nn.Module,
    bits: str | Bits = "w4a4",
    method: str | QuantConfig = "quest",
    skip: Sequence[str] | None = None,
) -> nn.Module:
    """Turn every `nn.Linear` (and GPT-2's Conv1D) inside ``module`` into a `QuantLinear`
    (`QuantConv1D`), in place; returns it.

    Parameters, hooks and attributes stay what they were, so an optimizer made before still holds
    the weights; of methods that train scales it has to be given `learned_parameters`. ``skip`` are
    shell-style patterns of dotted names, without the prefixes of torch.compile, DDP and PEFT; what
    matches stays as it is, with all inside it. By default that is the output head, ``()`` converts
    it too.

    UserError, and nothing is changed: a pattern that matches nothing, a layer that cannot be
    quantized so or is one of LoRA's, a sharded model, nothing to convert. The trained scales of a
    frozen layer are frozen. Layers with matrices that convert does not
    take (attention with a projection of its own, experts, other libraries' layers) are named in one
    warning.
    """
    parsed = parse_bits(bits) if isinstance(bits, str) else bits
    quant = method_config(method)
    check_wrappers(module, new_parameters=quant.scale != "gaussian" and parsed.quantized)
    _check_recipe(parsed, quant)
    found = _survey(module, skip)
    pairs = _quantizers(found, parsed, quant)
    _check_something(module, found, parsed)
    for layer, pair in pairs.items():
        _replace(layer, parsed, pair)
    _leave_fused_paths(module, pairs)
    _say_what_stays(module, found)
    return module


def _check_recipe(bits: Bits, quant: QuantConfig) -> None:
    """UserError for what no layer could be, before layers are named for it."""
    if bits.quantized:
        validate_quant(quant, bits)
    pair_rotations(bits, quant)


def _survey(module: nn.Module, skip: Sequence[str] | None) -> Survey:
    found = Survey([skip] if isinstance(skip, str) else skip or ())
    stay, parameters = skipped_modules(module, found.patterns)
    heads = output_heads(module) if skip is None else set()
    projections = {
        inner
        for part in module.modules()
        if isinstance(part, nn.MultiheadAttention)
        for inner in part.modules()
        if inner is not part
    }
    for name, layer in module.named_modules():
        shown = bare_name(name) or type(layer).__name__
        if layer in stay or layer in projections:
            continue
        if is_quantized(layer):
            found.quantized[shown] = layer.bits
        elif layer in heads:
            found.heads += [shown] if takes(layer) else []
        elif takes(layer):
            found.layers[layer] = shown
        else:
            reason = reason_left(layer)
            own = {f"{name}.{parameter}".lstrip(".") for parameter in own_matrices(layer)}
            if reason is not None and not (own and own <= parameters):
                found.left.setdefault(reason, []).append(shown)
    return found


def _quantizers(found: Survey, bits: Bits, quant: QuantConfig) -> dict[nn.Module, Pair]:
    """The quantizers of each layer; UserError names the layers that cannot have any."""
    pairs, refused = {}, dict[str, list[str]]()
    for layer, name in found.layers.items():
        weight = cast(Tensor, layer.weight)
        width = weight.shape[1] if isinstance(layer, nn.Linear) else weight.shape[0]
        try:
            check_no_adapter(name)
            pairs[layer] = operand_quantizers(bits, quant, width, weight)
        except UserError as error:
            refused.setdefault(str(error), []).append(name)
    if refused:
        problems = "; ".join(f"{listed(names)}: {reason}" for reason, names in refused.items())
        more = [skip_pattern(names[0]) for names in refused.values()]
        skip = list(dict.fromkeys([*found.patterns, *found.heads, *more]))
        raise UserError(
            f"{problems} Nothing was converted; name such layers in skip to leave them as they are:"
            f" skip={skip}."
        )
    return pairs


def _check_something(module: nn.Module, found: Survey, bits: Bits) -> None:
    others = [name for name, theirs in found.quantized.items() if theirs != bits]
    if found.layers or (found.quantized and not others):
        return
    left = dict(found.left)
    if found.heads:
        left["the output head, skip=() converts it too"] = found.heads
    if others:
        left[f"quantized already, to other bits than {bits}"] = others
    stays = [f"{listed(names)}: {reason}" for reason, names in left.items()]
    reasons = "; ".join(stays) or "it has no nn.Linear, or skip names all of them"
    raise UserError(f"nothing to convert in this {type(module).__name__}: {reasons}.")


def _replace(layer: nn.Module, bits: Bits, pair: Pair) -> None:
    kind = QuantLinear if isinstance(layer, nn.Linear) else QuantConv1D
    layer.__class__ = kind
    assert isinstance(layer, QuantLinear | QuantConv1D)
    layer.bits = bits
    layer.weight_quantizer, layer.activation_quantizer = pair
    if not layer.weight.requires_grad:  # nor is anything else of a frozen layer trained
        for quantizer in pair:
            quantizer.requires_grad_(False)
    layer.train(layer.training)


def _leave_fused_paths(module: nn.Module, converted: Collection[nn.Module]) -> None:
    """PyTorch's fused inference of an encoder reads the weights without calling the layers, and
    packs padded sequences for it: both are switched off where layers are converted."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            if not any(inner in converted for inner in part.modules()):
                continue
            if isinstance(part, nn.TransformerEncoder):
                part.use_nested_tensor = False
            else:
                part.activation_relu_or_gelu = 0


def _say_what_stays(module: nn.Module, found: Survey) -> None:
    stays = [f"{listed(names)}: {reason}" for reason, names in found.left.items()]
    if stays:
        warnings.warn(
            f"convert() leaves layers as they are (name them in skip to silence this):"
            f" {'; '.join(stays)}.",
            stacklevel=3,
        )
    if found.heads:
        log.info("not converted, the output head: %s; skip=() converts it too", found.heads)
    learned = len(learned_parameters(module))
    if learned:
        log.info(
            "%d learned scales: an optimizer made before convert() has to be given"
            " questtrain.learned_parameters(model)",
            learned,
        )
