"""Validation at the edge: every rule a config must satisfy, checked once, with advice."""

from __future__ import annotations

import fnmatch
import math

from questtrain.config.bits import parse_bits
from questtrain.config.derived import intermediate_size, steps
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import ModelConfig, QuantConfig, TrainConfig
from questtrain.errors import UserError, unknown

MIN_HADAMARD_BLOCK = 16
ROTATIONS = ("auto", "none", "hadamard", "hadamard-back")
AUTOCAST = ("auto", "bf16", "none")
SWITCH = ("auto", "true", "false")
RESUME = ("auto", "never", "must")


def validate(config: TrainConfig) -> None:
    """Raise UserError for the first rule that ``config`` breaks.

    Spells ``bits`` canonically and settles ``micro_batch_size`` (at most the batch) in place.
    """
    _check_model(config.model)
    bits = parse_bits(config.bits)
    config.bits = str(bits)
    if bits.quantized:
        _check_quant(config.quant)
        pair_rotations(bits, config.quant)
        _check_widths(config.model, config.quant)
    _check_run(config)


def _check_model(model: ModelConfig) -> None:
    for key in ("num_layers", "hidden_size", "num_heads", "nominal_params"):
        _positive(f"model.{key}", getattr(model, key))
    for key in ("intermediate_size", "vocab_size"):
        if getattr(model, key) is not None:
            _positive(f"model.{key}", getattr(model, key))
    if model.hidden_size % 16:
        raise UserError(
            f"model.hidden_size={model.hidden_size} is no multiple of 16; the nearest are"
            f" {max(model.hidden_size // 16, 1) * 16} and {(model.hidden_size // 16 + 1) * 16}."
        )
    if model.hidden_size % model.num_heads or (model.hidden_size // model.num_heads) % 2:
        valid = [
            heads
            for heads in range(1, model.hidden_size + 1)
            if model.hidden_size % heads == 0 and (model.hidden_size // heads) % 2 == 0
        ]
        close = min(valid, key=lambda heads: abs(heads - model.num_heads))
        raise UserError(
            f"model.num_heads={model.num_heads} does not divide model.hidden_size="
            f"{model.hidden_size} into heads of even width; the nearest that does is {close}."
        )


def _check_quant(quant: QuantConfig) -> None:
    if quant.rotation not in ("hadamard", "none"):
        raise unknown("quant.rotation", quant.rotation, ("hadamard", "none"))
    for key in ("weight_rotation", "activation_rotation"):
        if getattr(quant, key) not in ROTATIONS:
            raise unknown(f"quant.{key}", getattr(quant, key), ROTATIONS)
    block = quant.hadamard_block
    if block < MIN_HADAMARD_BLOCK or block & (block - 1):
        close = max(MIN_HADAMARD_BLOCK, 2 ** round(math.log2(max(block, 1))))
        raise UserError(
            f"quant.hadamard_block={block} must be a power of two of at least"
            f" {MIN_HADAMARD_BLOCK}; the nearest is {close}."
        )
    for key in ("trust_scale", "trust_error"):
        value = getattr(quant, key)
        if value is not None and not value > 0:
            raise UserError(f"quant.{key}={value} must be positive; inf trusts everything.")
    if quant.trust_scale is not None and quant.trust_error is not None:
        raise UserError("quant.trust_scale and quant.trust_error are two forms of one: give one.")


def _check_widths(model: ModelConfig, quant: QuantConfig) -> None:
    if quant.rotation == "hadamard":
        for width in (model.hidden_size, intermediate_size(model)):
            hadamard_block(width, quant.hadamard_block)


def _check_run(config: TrainConfig) -> None:
    for key in ("batch_size", "sequence_length", "lr", "log_every", "eval_every"):
        _positive(key, getattr(config, key))
    for key in ("checkpoint_every", "tokens_per_param"):
        _positive(key, getattr(config, key))
    for name, value, choices in (
        ("compile", config.compile, SWITCH),
        ("resume", config.resume, RESUME),
        ("train.autocast", config.train.autocast, AUTOCAST),
    ):
        if value not in choices:
            raise unknown(name, value, choices)
    micro = config.batch_size if config.micro_batch_size is None else config.micro_batch_size
    micro = min(micro, config.batch_size)
    config.micro_batch_size = micro
    if micro < 1 or config.batch_size % micro:
        divisors = [n for n in range(1, config.batch_size + 1) if config.batch_size % n == 0]
        close = min(divisors, key=lambda divisor: abs(divisor - micro))
        raise UserError(
            f"micro_batch_size={micro} does not divide batch_size={config.batch_size};"
            f" the nearest that does is {close}."
        )
    if config.max_steps is not None:
        _positive("max_steps", config.max_steps)
    if steps(config) < 1:
        raise UserError(
            f"tokens_per_param={config.tokens_per_param:g} of {config.model.name} are fewer tokens"
            f" than one batch of {config.batch_size} × {config.sequence_length}; raise"
            " tokens_per_param or lower batch_size."
        )


def _positive(key: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{key}={value} must be a positive number.")


def hadamard_block(width: int, block: int) -> int:
    """The largest power of two up to ``block`` that divides ``width``; under 16 is an error."""
    largest = math.gcd(width, block)
    if largest < MIN_HADAMARD_BLOCK:
        raise UserError(
            f"a width of {width} has no Hadamard block: it must be a multiple of"
            f" {MIN_HADAMARD_BLOCK} (the nearest: {max(1, round(width / 16)) * 16}), or choose"
            " quant.rotation=none."
        )
    return largest


def is_skipped(name: str, patterns: list[str]) -> bool:
    """Whether a module's dotted name matches one of the shell-style ``patterns``."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
