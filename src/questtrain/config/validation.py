"""Rules that concern several settings at once, checked once, with advice.

What a setting may be on its own is declared with it (`questtrain.config.ranges`).
"""

from __future__ import annotations

import math

from questtrain.config.bits import Bits, parse_bits
from questtrain.config.derived import (
    block_linears,
    intermediate_size,
    num_kv_heads,
    query_size,
    steps,
)
from questtrain.config.eval_tasks import check_eval_tasks
from questtrain.config.ranges import check_fields
from questtrain.config.reproducible import settle_reproducible
from questtrain.config.rotation import pair_rotations
from questtrain.config.schema import (
    MAX_STEPS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    ScheduleConfig,
    TrainConfig,
)
from questtrain.config.skip import is_skipped
from questtrain.config.switch import DEFAULT_SWITCH_FROM, phases, switch_step
from questtrain.config.target import check_target, check_target_width
from questtrain.errors import UserError, suggestion

SMALLEST_BLOCK = 16
"""Columns that are rotated together, or share a scale, at the least."""
WEIGHT_SCALES = ("scale_dtype", "group_size")
"""Settings of how the scales of weights are stored."""
PAIRS_OF_FOUR = 8
"""2:4 sparsity of pairs keeps 4 of each 8 consecutive values."""
STDLIB_VOCABULARY = (257, 65_536)
"""Of a byte-level BPE: the bytes and BOS at the least; at the most what the standard library's text
has words for."""


def validate(config: TrainConfig) -> None:
    """Raise UserError for the first rule between settings that ``config`` breaks.

    Spells ``bits`` and ``switch_from`` canonically and settles ``micro_batch_size`` (at most the
    batch; see also `settle_reproducible`) in place.
    """
    validate_model(config.model)
    config.bits = str(parse_bits(config.bits))
    _settle_switch(config)
    _check_method(config.quant)
    for bits in map(parse_bits, phases(config)):
        _check_skip(config.model, config.quant.skip, bits)
        if bits.quantized:
            _check_format(config.quant, bits)
            _check_widths(config.model, config.quant, bits)
    _check_data(config.data)
    _check_optim(config.optim)
    _check_schedule(config.schedule)
    _check_run(config)


def validate_model(model: ModelConfig) -> None:
    """Raise UserError for the first rule between the model's settings that it breaks."""
    if model.hidden_size % 16:
        raise UserError(
            f"model.hidden_size={model.hidden_size} is no multiple of 16; the nearest are"
            f" {max(model.hidden_size // 16, 1) * 16} and {(model.hidden_size // 16 + 1) * 16}."
        )
    if model.head_dim is None:
        _check_heads(model)
    elif model.head_dim % 2 or query_size(model) % 16:
        raise UserError(
            f"model.head_dim={model.head_dim}: rotary positions turn pairs, and num_heads ="
            f" {model.num_heads} heads together must be a multiple of 16 wide; the nearest that"
            f" does is {_nearest_head_dim(model, model.head_dim)}."
        )
    if model.num_heads % num_kv_heads(model):
        close = _nearest_divisor(model.num_heads, num_kv_heads(model))
        raise UserError(
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads="
            f"{model.num_heads}, so that each would serve as many heads of queries; the nearest"
            f" that does is {close}."
        )
    scaling = model.rope_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise UserError(
            f"model.rope_scaling.low_freq_factor={scaling.low_freq_factor:g} must be below"
            f" model.rope_scaling.high_freq_factor={scaling.high_freq_factor:g}: Llama 3 has 1"
            " and 4."
        )


def _check_heads(model: ModelConfig) -> None:
    """Of heads whose width follows from their number."""
    if model.hidden_size % model.num_heads or (model.hidden_size // model.num_heads) % 2:
        valid = [
            heads
            for heads in range(1, model.hidden_size + 1)
            if model.hidden_size % heads == 0 and (model.hidden_size // heads) % 2 == 0
        ]
        close = min(valid, key=lambda heads: abs(heads - model.num_heads))
        raise UserError(
            f"model.num_heads={model.num_heads} does not divide model.hidden_size="
            f"{model.hidden_size} into heads of even width; the nearest that does is {close}, or"
            " give model.head_dim."
        )


def _nearest_head_dim(model: ModelConfig, width: int) -> int:
    step = math.lcm(2, 16 // math.gcd(16, model.num_heads))
    return max(1, round(width / step)) * step


def _nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of ``number`` that is closest to ``wanted``."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda divisor: abs(divisor - wanted))


def _settle_switch(config: TrainConfig) -> None:
    """Spell ``switch_from``; UserError for a switch that changes nothing."""
    if config.switch_at is None:
        if config.switch_from is not None:
            raise UserError(
                f"switch_from={config.switch_from} needs switch_at, the share of the steps that is"
                " trained in it: switch_at=0.6, say."
            )
        return
    try:
        config.switch_from = str(parse_bits(config.switch_from or DEFAULT_SWITCH_FROM))
    except UserError as error:
        raise UserError(f"switch_from: {error}") from error
    if config.switch_from == config.bits:
        raise UserError(
            f"switch_from={config.switch_from} are the run's bits already: there is nothing to"
            f" switch at {config.switch_at:g} of its steps. Choose other bits, or leave switch_at"
            " out."
        )


def _check_switch_step(config: TrainConfig) -> None:
    """UserError unless each phase has a step."""
    count, at = steps(config), switch_step(config)
    if at is not None and not 0 < at < count:
        raise UserError(
            f"switch_at={config.switch_at:g} of {count:,} steps leaves none"
            f" {'before' if at == 0 else 'after'} the switch: choose {1 / count:.2g} to"
            f" {1 - 1 / count:.2g}."
            if count > 1
            else f"switch_at={config.switch_at:g}: a run of one step has none after the switch."
        )


def validate_quant(quant: QuantConfig, bits: Bits) -> None:
    """Raise UserError for the first rule that a method breaks on its own or with ``bits``."""
    check_fields(quant, "quant.")
    _check_method(quant)
    _check_format(quant, bits)


def _check_method(quant: QuantConfig) -> None:
    """The rules that hold whatever is quantized, in a run of bf16 too."""
    for key in ("hadamard_block", "group_size"):
        size = getattr(quant, key)
        if size is not None and size & (size - 1):
            raise UserError(
                f"quant.{key}={size} must be a power of two of at least {SMALLEST_BLOCK}; the"
                f" nearest is {2 ** round(math.log2(size))}."
            )
    if quant.scale == "gaussian":
        _check_trust(quant)
    else:
        _check_learned_scale(quant)


def _check_format(quant: QuantConfig, bits: Bits) -> None:
    pair_rotations(bits, quant)
    _check_grid(quant, bits)
    if quant.scale != "gaussian" and bits.weight.sparse:
        raise UserError(
            f"bits={bits}: 2:4 sparsity goes with Gaussian scales (method quest, clip, ste), not"
            f" with quant.scale={quant.scale}."
        )
    for key in WEIGHT_SCALES:
        if getattr(quant, key) != getattr(QuantConfig(), key) and not bits.weight.quantized:
            raise UserError(
                f"quant.{key}={getattr(quant, key)} is of the scales of quantized weights, and"
                f" bits={bits} has none: leave it out, or choose bits=w4a4."
            )
    check_target(quant, bits)


def _check_grid(quant: QuantConfig, bits: Bits) -> None:
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


def _check_trust(quant: QuantConfig) -> None:
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


def _check_learned_scale(quant: QuantConfig) -> None:
    for key in ("trust_scale", "trust_error"):
        value = getattr(quant, key)
        if value is not None:
            raise UserError(
                f"quant.{key}={value} is of Gaussian scales; quant.scale={quant.scale} learns its"
                " clipping range. Leave it out, or choose method=quest."
            )
    for key in WEIGHT_SCALES:
        value = getattr(quant, key)
        if value != getattr(QuantConfig(), key):
            raise UserError(
                f"quant.{key}={value} is of Gaussian scales; quant.scale={quant.scale} learns one"
                " number a tensor, in fp32. Leave it out, or choose method=quest."
            )


def _check_widths(model: ModelConfig, quant: QuantConfig, bits: Bits) -> None:
    widths = {"hidden_size": model.hidden_size, "intermediate_size": intermediate_size(model)}
    if model.head_dim is not None:
        widths["num_heads × head_dim"] = query_size(model)
    for key, width in widths.items():
        try:
            if quant.rotation == "hadamard":
                hadamard_block(width, quant.hadamard_block)
            if bits.weight.sparse:
                check_sparse_width(width)
            if quant.group_size is not None:
                check_group_width(width, quant.group_size)
            check_target_width(quant, width)
        except UserError as error:
            raise UserError(f"model.{key}={width}: {error}") from error


def _check_skip(model: ModelConfig, patterns: list[str], bits: Bits) -> None:
    quantized = [name for name, _, _ in block_linears(model)]
    names = [*quantized, "lm_head"]  # which is never quantized
    for pattern in patterns:
        if not any(is_skipped(name, [pattern]) for name in names):
            raise UserError(
                f"quant.skip: {pattern!r} matches no linear layer of {model.name}; they are named"
                f" like {names[0]}, and * matches anything.{suggestion(pattern, names)}"
            )
    if bits.quantized and all(is_skipped(name, patterns) for name in quantized):
        raise UserError(
            f"quant.skip={patterns} leaves no layer of {model.name} to quantize: choose bits=bf16"
            f" for a run without quantization, or skip less than {bits} quantizes."
        )


def _check_data(data: DataConfig) -> None:
    lowest, highest = STDLIB_VOCABULARY
    size = data.vocab_size
    if data.source == "stdlib" and size is not None and not lowest <= size <= highest:
        raise UserError(
            f"data.vocab_size={size} is too {'small' if size < lowest else 'large'} for the BPE"
            f" that is trained on the standard library: choose {lowest} to {highest:,}."
        )


def _check_optim(optim: OptimConfig) -> None:
    """β₁²/√β₂ < 1, without which Adam need not converge (Kingma and Ba, theorem 4.1)."""
    if optim.beta1**4 >= optim.beta2:
        raise UserError(
            f"optim.beta2={optim.beta2:g} is too small for optim.beta1={optim.beta1:g}: Adam"
            f" diverges unless it is above beta1⁴, {optim.beta1**4:.3g}; 0.95 to 0.999 are usual."
        )


def _check_schedule(schedule: ScheduleConfig) -> None:
    warmup, decay = schedule.warmup_fraction, schedule.decay_fraction
    if schedule.name == "wsd" and warmup + decay > 1:
        raise UserError(
            f"schedule.warmup_fraction={warmup:g} and schedule.decay_fraction={decay:g} are more"
            f" than the whole run: lower one, decay_fraction to {1 - warmup:g} say."
        )


def _check_run(config: TrainConfig) -> None:
    if config.train.reproducible:
        settle_reproducible(config)
    micro = config.batch_size if config.micro_batch_size is None else config.micro_batch_size
    micro = min(micro, config.batch_size)
    config.micro_batch_size = micro
    if config.batch_size % micro:
        close = _nearest_divisor(config.batch_size, micro)
        raise UserError(
            f"micro_batch_size={micro} does not divide batch_size={config.batch_size};"
            f" the nearest that does is {close}."
        )
    check_eval_tasks(config.train)
    if config.gpus is not None:
        rows_per_process(config.batch_size, config.gpus, f"gpus={config.gpus}")
    count = steps(config)
    tokens = (
        f"tokens_per_param={config.tokens_per_param:g} of"
        f" model.nominal_params={config.model.nominal_params:g}"
    )
    batch = f"batch_size={config.batch_size} × sequence_length={config.sequence_length}"
    if count < 1:
        raise UserError(
            f"{tokens} are fewer tokens than one batch of {batch}; raise tokens_per_param or lower"
            " batch_size."
        )
    if count > MAX_STEPS:
        raise UserError(
            f"{tokens} in batches of {batch} are {count:.2g} steps, which would not end:"
            f" {MAX_STEPS:,} at the most. Lower tokens_per_param, or give max_steps."
        )
    _check_switch_step(config)


def rows_per_process(batch_size: int, processes: int, named: str) -> int:
    """How many sequences of a batch each of the processes, ``named`` so, takes; UserError if that
    is not the same number for all."""
    rows, left = divmod(batch_size, processes)
    if left:
        close = max(1, round(batch_size / processes)) * processes
        raise UserError(
            f"batch_size={batch_size} does not divide among {named}; the nearest that does is"
            f" {close}."
        )
    return rows


def hadamard_block(width: int, block: int) -> int:
    """The largest power of two up to ``block`` that divides ``width``; under 16 is an error."""
    largest = math.gcd(width, block)
    if largest < SMALLEST_BLOCK:
        raise UserError(
            f"a width of {width} has no Hadamard block: it must be a multiple of"
            f" {SMALLEST_BLOCK} (the nearest: {max(1, round(width / 16)) * 16}), or choose"
            " quant.rotation=none."
        )
    return largest


def check_group_width(width: int, group: int) -> None:
    """UserError unless groups of so many columns divide rows of ``width`` values."""
    if width % group:
        fitting = [str(2**n) for n in range(4, 21) if width % 2**n == 0]
        raise UserError(
            f"a width of {width} does not divide into groups of {group} columns: choose"
            f" quant.group_size={', '.join([*fitting, 'null'])} (null: a scale a row)."
        )


def check_sparse_width(width: int) -> None:
    """UserError unless 2:4 sparsity of pairs can divide rows of ``width`` values."""
    if width % PAIRS_OF_FOUR:
        raise UserError(
            f"a width of {width} is no multiple of {PAIRS_OF_FOUR}, which 2:4 sparsity of pairs"
            f" needs; the nearest is {max(1, round(width / PAIRS_OF_FOUR)) * PAIRS_OF_FOUR}."
        )
