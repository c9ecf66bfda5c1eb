"""Validation at the edge: every rule a config must satisfy, checked once, with advice."""

from __future__ import annotations

import math

from questtrain.config.bits import Bits, parse_bits
from questtrain.config.derived import block_linears, intermediate_size, steps
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import ModelConfig, QuantConfig, TrainConfig
from questtrain.config.skip import is_skipped
from questtrain.errors import UserError, suggestion, unknown

MIN_HADAMARD_BLOCK = 16
PAIRS_OF_FOUR = 8
"""2:4 sparsity of pairs keeps 4 of each 8 consecutive values."""
ROTATIONS = ("auto", "none", "hadamard", "hadamard-back")
GRIDS = ("centred", "int")
SCALES = ("gaussian", "learned-step", "learned-clip")
AUTOCAST = ("auto", "bf16", "none")
SAVE = ("codes", "packed")
BACKWARD = ("exact", "fp8")
SWITCH = ("auto", "true", "false")
RESUME = ("auto", "never", "must")
TOKEN_DTYPES = ("auto", "uint16", "uint32", "int32", "int64")


def validate(config: TrainConfig) -> None:
    """Raise UserError for the first rule that ``config`` breaks.

    Spells ``bits`` canonically and settles ``micro_batch_size`` (at most the batch) in place.
    """
    _check_model(config.model)
    bits = parse_bits(config.bits)
    config.bits = str(bits)
    if bits.quantized:
        validate_quant(config.quant, bits)
        _check_widths(config.model, config.quant, bits)
        _check_skip(config.model, config.quant.skip)
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


def validate_quant(quant: QuantConfig, bits: Bits) -> None:
    """Raise UserError for the first rule that a method breaks on its own or with ``bits``."""
    for key, choices in (
        ("rotation", ("hadamard", "none")),
        ("weight_rotation", ROTATIONS),
        ("activation_rotation", ROTATIONS),
        ("grid", GRIDS),
        ("scale", SCALES),
    ):
        if getattr(quant, key) not in choices:
            raise unknown(f"quant.{key}", getattr(quant, key), choices)
    block = quant.hadamard_block
    if block < MIN_HADAMARD_BLOCK or block & (block - 1):
        close = max(MIN_HADAMARD_BLOCK, 2 ** round(math.log2(max(block, 1))))
        raise UserError(
            f"quant.hadamard_block={block} must be a power of two of at least"
            f" {MIN_HADAMARD_BLOCK}; the nearest is {close}."
        )
    pair_rotations(bits, quant)
    if quant.grid == "int" and "1" in (bits.weight.label, bits.activation.label):
        raise UserError(
            f"quant.grid=int needs zero and a value on each side of it, which bits={bits} with its"
            " 1-bit operand has not: choose bits=w1.58a1.58, or quant.grid=centred."
        )
    if quant.grid == "int" and not {bits.weight.kind, bits.activation.kind} & {"int"}:
        raise UserError(
            f"quant.grid=int is of integer formats, and bits={bits} has none: leave it out, or"
            " choose bits=w4a4."
        )
    if quant.scale == "gaussian":
        _check_trust(quant)
    else:
        _check_learned_scale(quant, bits)


def _check_trust(quant: QuantConfig) -> None:
    for key in ("trust_scale", "trust_error"):
        value = getattr(quant, key)
        if value is not None and not value > 0:
            raise UserError(f"quant.{key}={value} must be positive; inf trusts everything.")
    if quant.trust_scale is not None and quant.trust_error is not None:
        raise UserError(
            f"quant.trust_scale={quant.trust_scale} and quant.trust_error={quant.trust_error} are"
            " two forms of one: give one."
        )
    defaults = QuantConfig()
    for key in ("activation_offset", "lr_scale", "scale_weight_decay"):
        if getattr(quant, key) != getattr(defaults, key):
            raise UserError(
                f"quant.{key}={getattr(quant, key)} is of learned scales, and method"
                f" {quant.method} has none: choose method=lsq, lsq-plus or pact, or leave it out."
            )


def _check_learned_scale(quant: QuantConfig, bits: Bits) -> None:
    for key in ("trust_scale", "trust_error"):
        value = getattr(quant, key)
        if value is not None:
            raise UserError(
                f"quant.{key}={value} is of Gaussian scales; quant.scale={quant.scale} learns its"
                " clipping range. Leave it out, or choose method=quest."
            )
    if bits.weight.sparse:
        raise UserError(
            f"bits={bits}: 2:4 sparsity goes with Gaussian scales (method quest, clip, ste), not"
            f" with quant.scale={quant.scale}."
        )
    _positive("quant.lr_scale", quant.lr_scale)
    decay = quant.scale_weight_decay
    if not (decay >= 0 and math.isfinite(decay)):
        raise UserError(f"quant.scale_weight_decay={decay} must be finite and not negative.")


def _check_widths(model: ModelConfig, quant: QuantConfig, bits: Bits) -> None:
    for width in (model.hidden_size, intermediate_size(model)):
        if quant.rotation == "hadamard":
            hadamard_block(width, quant.hadamard_block)
        if bits.weight.sparse:
            check_sparse_width(width)


def _check_skip(model: ModelConfig, patterns: list[str]) -> None:
    names = [*(name for name, _, _ in block_linears(model)), "lm_head"]
    for pattern in patterns:
        if not any(is_skipped(name, [pattern]) for name in names):
            raise UserError(
                f"quant.skip: {pattern!r} matches no linear layer of {model.name}; they are named"
                f" like {names[0]}, and * matches anything.{suggestion(pattern, names)}"
            )


def _check_run(config: TrainConfig) -> None:
    for key in ("batch_size", "sequence_length", "lr", "log_every", "eval_every"):
        _positive(key, getattr(config, key))
    for key in ("checkpoint_every", "tokens_per_param"):
        _positive(key, getattr(config, key))
    for name, value, choices in (
        ("compile", config.compile, SWITCH),
        ("resume", config.resume, RESUME),
        ("train.autocast", config.train.autocast, AUTOCAST),
        ("train.save", config.train.save, SAVE),
        ("train.backward", config.train.backward, BACKWARD),
        ("data.dtype", config.data.dtype, TOKEN_DTYPES),
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
    _positive("train.keep_checkpoints", config.train.keep_checkpoints)
    if config.train.diagnose_every is not None:
        _positive("train.diagnose_every", config.train.diagnose_every)
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


def check_sparse_width(width: int) -> None:
    """UserError unless 2:4 sparsity of pairs can divide rows of ``width`` values."""
    if width % PAIRS_OF_FOUR:
        raise UserError(
            f"a width of {width} is no multiple of {PAIRS_OF_FOUR}, which 2:4 sparsity of pairs"
            f" needs; the nearest is {max(1, round(width / PAIRS_OF_FOUR)) * PAIRS_OF_FOUR}."
        )
