"""``quantization_config`` of a config.json: how the layers of such a folder are quantized.

Pure, as `questtrain.model.huggingface` is. ``modules_to_not_convert`` are the linear layers that
are not, by Hugging Face's names: the head, and those that ``quant.skip`` named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from questtrain.config import ModelConfig, QuantConfig, is_skipped
from questtrain.config.json_form import config_from_json, json_form
from questtrain.errors import UserError
from questtrain.model.huggingface import hf_names
from questtrain.version import __version__

METHOD = "questtrain"
VERSION = 1
"""Of the layers' tensors: raised where an older questtrain would read them wrongly."""


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
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "questtrain_version": __version__,
        "bits": bits,
        "quant": json_form(quant),
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
    quant = config_from_json(QuantConfig, given["quant"])
    return LayerSettings(given["bits"], quant, frozenset(given["modules_to_not_convert"]))
