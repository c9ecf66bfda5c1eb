"""A run's default name: readable, and different for runs that differ."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from questtrain.config import TrainConfig, bits_text, is_operational, quantizes

_IN_THE_CORE = {
    *("model", "bits", "switch_at", "switch_from", "method", "data", "tokens_per_param", "seed"),
    "name",
}


def run_name(config: TrainConfig, overrides: Sequence[str]) -> str:
    """``100M-w4a4-quest-c4-100tpp-seed0``, then every other setting that was given."""
    parts = [config.model.name, bits_text(config)]
    if quantizes(config):
        parts.append(config.quant.method)
    parts += [config.data.name, f"{config.tokens_per_param:g}tpp", f"seed{config.seed}"]
    extras = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in _IN_THE_CORE or is_operational(key):
            continue
        extras.append(f"{key.split('.')[-1]}{_short(value)}")
    return "-".join(parts + sorted(extras))


def _short(value: str) -> str:
    if len(value) <= 16 and re.fullmatch(r"[A-Za-z0-9_.+]*", value):
        return value
    return "_" + hashlib.sha256(value.encode()).hexdigest()[:8]
