"""``run.json``: the row of the runs table, which a run writes when it ends, and everybody reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt
from pydantic import PlainValidator, ValidatorFunctionWrapHandler, WrapValidator, with_config

from questtrain.config import (
    Bits,
    TrainConfig,
    non_embedding_params,
    pair_rotations,
    parse_bits,
    phases,
    quantizes,
    steps,
    tokens,
    total_params,
    validate_quant,
)
from questtrain.config.gaussian import Trust, trust_in_force
from questtrain.store.json_file import STRICT, DamagedJson, read_json

FILE = "run.json"
REMEDY = "Remove it, and the same `questtrain train` writes it again from the last checkpoint."

HEAD_COLUMNS = ("name", "model", "bits", "method", "hadamard", "seed")
"""The columns that a diagnostic record and a figure's label know a run by."""


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A number of whatever type the file has: whole ones stay whole in tables."""
    check(value)
    return value


def _trust(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or value == "inf" or (is_number and 0 <= value < math.inf):
        return value
    raise ValueError('should be a number from 0, or "inf"')


Status: TypeAlias = Literal["completed", "diverged"]
"""How a run can have ended."""

Size: TypeAlias = Annotated[float, Ge(1), WrapValidator(_as_written)]
Number: TypeAlias = Annotated[float, Ge(0), WrapValidator(_as_written)]
Loss: TypeAlias = Annotated[float, Gt(0)]


@with_config({**STRICT, "extra": "allow"})
@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The columns, as docs/runs.md has them; None where a value is not known, as in records of
    earlier versions. ``evaluations`` are columns of their own, by name
    (`questtrain.store.evaluations`)."""

    name: str
    status: Status
    model: str | None = None
    non_embedding_params: Size | None = None
    total_params: Size | None = None
    bits: str
    w_bits: Number | None = None
    a_bits: Number | None = None
    format: str | None = None
    sparsity: str | None = None
    method: str
    hadamard: bool | None = None
    trust_scale: Annotated[float | str | None, PlainValidator(_trust)] = None
    dataset: str | None = None
    tokenizer: str | None = None
    tokens: Size | None = None
    tokens_per_param: Number | None = None
    sequence_length: Size | None = None
    batch_tokens: Size | None = None
    lr: Number | None = None
    seed: int | None = None
    steps: Size | None = None
    train_loss: Number | None = None
    val_loss: Loss | None = None
    wall_seconds: Number | None = None
    tokens_per_second: Number | None = None
    mfu: Number | None = None
    peak_memory_bytes: Number | None = None
    device: str | None = None
    questtrain_version: str | None = None
    git_revision: str | None = None
    torch_version: str | None = None
    grid: str | None = None
    trust_error: Annotated[float | str | None, PlainValidator(_trust)] = None
    lr_scale: Number | None = None
    scale_weight_decay: Number | None = None
    world_size: Size | None = None
    data_sha256: str | None = None
    data_tokens: Number | None = None
    epochs: Number | None = None
    switch_at: Number | None = None
    switch_from: str | None = None
    init_from: str | None = None
    init_sha256: str | None = None
    scale_dtype: str | None = None
    group_size: Size | None = None
    target: str | None = None
    rollbacks: Number | None = None
    skipped_batches: Number | None = None
    evaluations: dict[str, float] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds; columns that this version does not know come last."""
        return dict(vars(self))

    @property
    def columns(self) -> dict[str, Any]:
        """Every column by its name, those of ``evaluations`` last."""
        columns = self.content
        del columns["evaluations"]
        return columns | self.evaluations


def read_run_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None where the run has not ended yet.

    DamagedJson names what is wrong with it; a completed run has a size, tokens and a loss.
    """
    path = folder / FILE
    try:
        record = read_json(path, RunRecord, REMEDY)
    except FileNotFoundError:
        return None
    if record.status == "completed":
        for key in ("non_embedding_params", "tokens", "val_loss"):
            if record.columns[key] is None:
                raise DamagedJson(path, f"{key!r} holds None, and the run is completed", REMEDY)
    return record


def identity_columns(config: TrainConfig) -> dict[str, Any]:
    """What a run is, by its configuration alone: the columns that are known before it starts. The
    formats and the trust of one that switches its bits are those of its end.
    UserError for a method that cannot be, which a damaged ``config.yaml`` may hold."""
    model, quant, bits = config.model, config.quant, parse_bits(config.bits)
    quantized = quantizes(config)
    learned = quantized and quant.scale != "gaussian"
    rounded = bits.weight.quantized and quant.scale_dtype != "float32"
    trust = _trust_of(config, bits) if bits.quantized else Trust()
    return {
        "name": config.name,
        "model": model.name,
        "non_embedding_params": non_embedding_params(model),
        "total_params": total_params(model, model.vocab_size) if model.vocab_size else None,
        "bits": config.bits,
        "w_bits": _number(bits.weight.bits),
        "a_bits": _number(bits.activation.bits),
        "format": _format(bits),
        "sparsity": "2:4" if bits.weight.sparse else None,
        "method": quant.method if quantized else "none",
        "hadamard": quantized and quant.rotation == "hadamard",
        "trust_scale": _finite(trust.scale),
        "dataset": config.data.name,
        "tokens": tokens(config),
        "tokens_per_param": config.tokens_per_param,
        "sequence_length": config.sequence_length,
        "batch_tokens": config.batch_size * config.sequence_length,
        "lr": config.lr,
        "seed": config.seed,
        "steps": steps(config),
        "grid": quant.grid if quantized else None,
        "trust_error": _finite(trust.error),
        "lr_scale": quant.lr_scale if learned else None,
        "scale_weight_decay": quant.scale_weight_decay if learned else None,
        **_beginning(config),
        "scale_dtype": quant.scale_dtype if rounded else None,
        "group_size": quant.group_size if bits.weight.quantized else None,
        "target": quant.target if bits.quantized else None,
    }


def _beginning(config: TrainConfig) -> dict[str, Any]:
    """What tells a run from one that is in its bits, and of its own weights, from the start."""
    return {
        "switch_at": config.switch_at,
        "switch_from": None if config.switch_at is None else phases(config)[0],
        "init_from": config.init_from,
    }


def _trust_of(config: TrainConfig, bits: Bits) -> Trust:
    """The trust of the weights, or of the activations if only they are quantized."""
    validate_quant(config.quant, bits)
    weight_rotation, activation_rotation = pair_rotations(bits, config.quant)
    if bits.weight.quantized:
        return trust_in_force(bits.weight, config.quant, weight_rotation != "none")
    return trust_in_force(bits.activation, config.quant, activation_rotation != "none")


def _number(bits: float) -> int | float:
    return int(bits) if bits.is_integer() else bits


def _format(bits: Bits) -> str:
    """``int``, ``fp4`` or ``bf16``: of the quantized operands, both where they differ."""
    kinds = [operand.kind for operand in (bits.weight, bits.activation) if operand.quantized]
    return "+".join(dict.fromkeys(kinds)) or "bf16"


def _finite(number: float | None) -> float | str | None:
    """The number, or ``"inf"``: JSON has no infinity."""
    return "inf" if number is not None and math.isinf(number) else number
