"""Runs that change their number formats on the way: ``switch_from`` for the first ``switch_at`` of
the steps, ``bits`` after it."""

from __future__ import annotations

from dataclasses import replace

from questtrain.config.bits import parse_bits
from questtrain.config.derived import steps, training_bytes
from questtrain.config.schema import TrainConfig

DEFAULT_SWITCH_FROM = "bf16"


def switch_step(config: TrainConfig) -> int | None:
    """The number of updates made in ``switch_from``; None where the run does not switch."""
    return None if config.switch_at is None else round(config.switch_at * steps(config))


def bits_at(config: TrainConfig, step: int) -> str:
    """The bits of the model as it is after ``step`` updates: it switches as soon as the last update
    of the first phase is made."""
    at = switch_step(config)
    return config.bits if at is None or step >= at else config.switch_from or DEFAULT_SWITCH_FROM


def at_step(config: TrainConfig, step: int) -> TrainConfig:
    """``config`` as that of a run of one phase, the one that the model is in after ``step``
    updates."""
    if config.switch_at is None:
        return config
    return replace(config, bits=bits_at(config, step), switch_at=None, switch_from=None)


def phase_start(config: TrainConfig, step: int) -> int:
    """The step at which the phase began that the model is in after ``step`` updates."""
    at = switch_step(config)
    return 0 if at is None or step < at else at


def phases(config: TrainConfig) -> tuple[str, ...]:
    """The bits that the run trains in, one after the other."""
    at = switch_step(config)
    return (config.bits,) if at is None else (bits_at(config, 0), config.bits)


def quantizes(config: TrainConfig) -> bool:
    """Whether the run, in one of its phases, rounds anything."""
    return any(parse_bits(bits).quantized for bits in phases(config))


def peak_training_bytes(config: TrainConfig, vocab_size: int) -> int:
    """`training_bytes` of the phase that needs most."""
    return max(training_bytes(replace(config, bits=bits), vocab_size) for bits in phases(config))


def bits_text(config: TrainConfig) -> str:
    """``w4a4``; of a run that switches ``bf16@0.6-w4a4``: bf16 for 0.6 of the steps, then w4a4."""
    if config.switch_at is None:
        return config.bits
    return f"{bits_at(config, 0)}@{config.switch_at:g}-{config.bits}"
