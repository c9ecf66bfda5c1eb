"""``run.json``: the row of the runs table, written when a run ends."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

import questtrain
from questtrain.config import (
    TrainConfig,
    non_embedding_params,
    parse_bits,
    steps,
    tokens,
    total_params,
)
from questtrain.device import device_name, peak_memory_bytes
from questtrain.quant.estimator import default_trust_scale
from questtrain.quant.grid import UniformGrid


def build_record(
    config: TrainConfig,
    status: str,
    tokenizer: str,
    rows: list[dict[str, Any]],
    wall_seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """One flat mapping; ``rows`` are those of metrics.jsonl.

    ``train_loss`` is the mean over the last tenth of the logged steps, ``val_loss`` the last
    validation's, ``tokens_per_second`` and ``mfu`` the medians of the logged ones.
    """
    bits = parse_bits(config.bits)
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
        "format": "int" if bits.quantized else "bf16",
        "sparsity": None,
        "method": config.quant.method if bits.quantized else "none",
        "hadamard": bits.quantized and config.quant.rotation == "hadamard",
        "trust_scale": _trust_scale(config),
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
        "git_revision": _git_revision(),
        "torch_version": torch.__version__,
    }


def _number(bits: float) -> int | float:
    return int(bits) if bits.is_integer() else bits


def _trust_scale(config: TrainConfig) -> float | None:
    """The outer trust scale t in force for the weights (the activations', if only they are
    quantized); None without quantization and where trust is given as an error."""
    bits, quant = parse_bits(config.bits), config.quant
    if not bits.quantized or quant.trust_error is not None:
        return None
    if quant.trust_scale is not None:
        return quant.trust_scale
    number_format = bits.weight if bits.weight.quantized else bits.activation
    return default_trust_scale(UniformGrid(number_format.levels), quant.rotation == "hadamard")


def _median(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def _git_revision() -> str | None:
    """The commit of the source tree this package runs from, if it runs from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
