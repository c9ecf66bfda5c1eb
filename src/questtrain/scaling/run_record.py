"""``run.json``, read back and checked: a damaged record is said to be one, and hides no other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from questtrain.store.json_object import JsonObject, read_json_object

TEXTS = (
    "model", "format", "sparsity", "dataset", "tokenizer", "device", "questtrain_version",
    "git_revision", "torch_version", "grid",
)  # fmt: skip
COUNTS = (
    "non_embedding_params", "total_params", "tokens", "sequence_length", "batch_tokens", "steps",
    "world_size",
)  # fmt: skip
NUMBERS = (
    "w_bits", "a_bits", "tokens_per_param", "lr", "train_loss", "val_loss", "wall_seconds",
    "tokens_per_second", "mfu", "peak_memory_bytes", "lr_scale", "scale_weight_decay",
)  # fmt: skip
MAY_BE_ENDLESS = ("trust_scale", "trust_error")
"""Numbers, or "inf"."""

STATUSES = ("completed", "diverged")


def read_run_record(path: Path) -> dict[str, Any]:
    """The columns of a run, as docs/runs.md has them; others pass unchecked.

    DamagedJson for one of another type or sign, for a completed run without its size, tokens or
    loss, and for what is no record at all; FileNotFoundError passes.
    """
    record = read_json_object(path)
    for key in ("name", "status", "bits", "method"):
        record.take(key, str)
    if (status := record.values["status"]) not in STATUSES:
        raise record.damaged(f"'status' holds {status!r}, not {' or '.join(STATUSES)}")
    for key in TEXTS:
        record.optional(key, str)
    for key in COUNTS:
        record.optional(key, float, low=1)
    for key in NUMBERS:
        record.optional(key, float, low=0)
    for key in MAY_BE_ENDLESS:
        if record.values.get(key) != "inf":
            record.optional(key, float, low=0)
    record.optional("seed", int)
    record.optional("hadamard", bool)
    if status == "completed":
        _check_point(record)
    return dict(record.values)


def _check_point(record: JsonObject) -> None:
    """What a law needs of a run."""
    for key in ("non_embedding_params", "tokens"):
        record.take(key, float, low=1)
    record.take("val_loss", float, low=sys.float_info.min)
