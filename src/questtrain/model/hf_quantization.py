"""``quantization_config`` of a config.json: how the layers of such a folder are quantized.

Pure, as `questtrain.model.huggingface` is. ``modules_to_not_convert`` are the linear layers that
are not, by Hugging Face's names: the head, and those that ``quant.skip`` named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from questtrain.config import ModelConfig, QuantConfig, is_skipped
from questtrain.config.loading import config_from_mapping
from questtrain.errors import UserError
from questtrain.model.huggingface import hf_names
from questtrain.version import __version__

METHOD = "questtrain"
VERSION = 1
"""Of the layers' tensors: raised where an older questtrain would read them wrongly."""

_INFINITE = {math.inf: "inf"}  # JSON has no infinity


@dataclass(frozen=True)
class LayerSettings:
    """How all layers but the ``skipped`` ones are quantized."""

    bits: str
    quant: QuantConfig
    skipped: frozenset[str]


def quantization_config(model: ModelConfig, bits: str, quant: QuantConfig) -> dict[str, Any]:
    """What config.json holds."""
    skipped = [
        theirs.removesuffix(".weight")
        for ours, theirs in hf_names(model).items()
        if ours.endswith("_proj.weight") and is_skipped(ours.removesuffix(".weight"), quant.skip)
    ]
    settings = {
        key: _INFINITE.get(value, value) if isinstance(value, float) else value
        for key, value in asdict(quant).items()
    }
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "questtrain_version": __version__,
        "bits": bits,
        "quant": settings,
        "modules_to_not_convert": ["lm_head", *skipped],
    }


def layer_settings(given: Mapping[str, Any]) -> LayerSettings:
    """What `quantization_config` wrote; UserError where it is of a newer version, or damaged."""
    version = given.get("version")
    if version != VERSION:
        raise UserError(
            f"quantization_config.version={version!r}: this is questtrain {__version__}, which"
            f" reads version {VERSION}; the folder was written by"
            f" {given.get('questtrain_version')}."
        )
    restored = {text: number for number, text in _INFINITE.items()}
    settings = {
        key: restored.get(value, value) if isinstance(value, str) else value
        for key, value in given["quant"].items()
    }
    quant = config_from_mapping(QuantConfig, settings)
    return LayerSettings(given["bits"], quant, frozenset(given["modules_to_not_convert"]))
