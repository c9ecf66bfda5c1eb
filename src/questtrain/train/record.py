"""``run.json``: the row of the runs table, written when a run ends."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

import questtrain
from questtrain.config import (
    Bits,
    TrainConfig,
    non_embedding_params,
    pair_rotations,
    parse_bits,
    steps,
    tokens,
    total_params,
)
from questtrain.data import TokenDataset, passes
from questtrain.data.identity import DataIdentity
from questtrain.device import device_name, peak_memory_bytes
from questtrain.quant.build import build_quantizer
from questtrain.quant.estimator import ErrorTrust, Estimator, OuterTrust
from questtrain.quant.quantizer import Quantizer
from questtrain.store.revision import git_revision


def build_record(
    config: TrainConfig,
    status: str,
    tokenizer: str,
    rows: list[dict[str, Any]],
    wall_seconds: float,
    device: torch.device,
    world_size: int = 1,
) -> dict[str, Any]:
    """One flat mapping; ``rows`` are those of metrics.jsonl.

    ``train_loss`` is the mean over the last tenth of the logged steps, ``val_loss`` the last
    validation's, ``tokens_per_second`` and ``mfu`` the medians of the logged ones; ``device`` is
    one of ``world_size`` like it.
    """
    bits, quant = parse_bits(config.bits), config.quant
    estimator = _estimator(config, bits) if bits.quantized else None
    learned = bits.quantized and quant.scale != "gaussian"
    vocab_size = config.model.vocab_size or 0
    logged = [row for row in rows if "train_loss" in row]
    tail = logged[-max(1, len(logged) // 10) :]
    return {
        "name": config.name,
        "status": status,
        "model": config.model.name,
        "non_embedding_params": non_embedding_params(config.model),
        "total_params": total_params(config.model, vocab_size),
        "bits": config.bits,
        "w_bits": _number(bits.weight.bits),
        "a_bits": _number(bits.activation.bits),
        "format": _format(bits),
        "sparsity": "2:4" if bits.weight.sparse else None,
        "method": quant.method if bits.quantized else "none",
        "hadamard": bits.quantized and quant.rotation == "hadamard",
        "trust_scale": _trust_scale(estimator),
        "dataset": config.data.name,
        "tokenizer": tokenizer,
        "tokens": tokens(config),
        "tokens_per_param": config.tokens_per_param,
        "sequence_length": config.sequence_length,
        "batch_tokens": config.batch_size * config.sequence_length,
        "lr": config.lr,
        "seed": config.seed,
        "steps": steps(config),
        "train_loss": statistics.fmean(row["train_loss"] for row in tail) if tail else None,
        "val_loss": next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        "wall_seconds": round(wall_seconds, 1),
        "tokens_per_second": _median(logged, "tokens_per_second"),
        "mfu": _median(logged, "mfu"),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": device_name(device),
        "questtrain_version": questtrain.__version__,
        "git_revision": git_revision(),
        "torch_version": torch.__version__,
        "grid": quant.grid if bits.quantized else None,
        "trust_error": _trust_error(estimator),
        "lr_scale": quant.lr_scale if learned else None,
        "scale_weight_decay": quant.scale_weight_decay if learned else None,
        "world_size": world_size,
    }


def data_record(config: TrainConfig, dataset: TokenDataset) -> dict[str, Any]:
    """Which data it was: the corpus, the tokens that the run could read, and how often it did."""
    return {
        "data_sha256": DataIdentity.of(dataset).corpus_sha256,
        "data_tokens": dataset.train.num_tokens,
        "epochs": round(epochs(config, dataset), 4),
    }


def epochs(config: TrainConfig, dataset: TokenDataset) -> float:
    """Passes of the run over its training data."""
    samples = steps(config) * config.batch_size
    return passes(dataset.train, config.sequence_length, samples)


def _number(bits: float) -> int | float:
    return int(bits) if bits.is_integer() else bits


def _format(bits: Bits) -> str:
    """``int``, ``fp4`` or ``bf16``: of the quantized operands, both where they differ."""
    kinds = [operand.kind for operand in (bits.weight, bits.activation) if operand.quantized]
    return "+".join(dict.fromkeys(kinds)) or "bf16"


def _estimator(config: TrainConfig, bits: Bits) -> Estimator:
    """The estimator of the weights, or of the activations if only they are quantized."""
    operands = (bits.weight, bits.activation)
    rotations = pair_rotations(bits, config.quant)
    index = 0 if bits.weight.quantized else 1
    quantizer = build_quantizer(
        operands[index], config.quant, rotations[index], config.model.hidden_size
    )
    assert isinstance(quantizer, Quantizer)
    return quantizer.estimator


def _trust_scale(estimator: Estimator | None) -> float | str | None:
    """The outer trust scale t in force; None where there is none."""
    if not isinstance(estimator, OuterTrust):
        return None
    return _finite(estimator.outer_trust_scale)


def _trust_error(estimator: Estimator | None) -> float | str | None:
    """The largest error T that is trusted; None where trust is another."""
    return _finite(estimator.max_error) if isinstance(estimator, ErrorTrust) else None


def _finite(number: float) -> float | str:
    """The number, or ``"inf"``: JSON has no infinity."""
    return number if math.isfinite(number) else "inf"


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None
