"""What a folder of ``format=hf`` holds, planned before it is written and read back after."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questtrain.config import ModelConfig, block_linears
from questtrain.model.hf_quantization import LayerSettings, layer_settings
from questtrain.model.huggingface import hf_names, model_config_of
from questtrain.model.meta import without_numbers
from questtrain.quant import QuantLinear
from questtrain.quant.guarded_linear import GuardedLinear
from questtrain.quant.method import method_config
from questtrain.store.tensor_files import Planned, StoredTensors

CONFIG = "config.json"
FLOATS = ("layer.weight", "layer.bias")
"""A `GuardedLinear`'s tensors that are rounded with the embedding, where they are: a weight that is
not quantized, and a bias. Scales never are."""


def planned_layer(linear: QuantLinear, dtype: torch.dtype) -> dict[str, Planned]:
    """The tensors of a layer that is on the meta device, as they come to lie under its name."""
    return {
        key: Planned(dtype if key in FLOATS else tensor.dtype, tuple(tensor.shape))
        for key, tensor in GuardedLinear.empty(linear).state_dict().items()
    }


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A written folder."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
        return content

    @cached_property
    def settings(self) -> LayerSettings | None:
        """None of a plain Llama."""
        given = self.config.get("quantization_config")
        return None if given is None else layer_settings(given)

    @cached_property
    def model(self) -> ModelConfig:
        dense = {key: value for key, value in self.config.items() if key != "quantization_config"}
        return model_config_of(dense)

    def _linear(self, name: str) -> QuantLinear:
        """One of our layers without its numbers."""
        settings = self.settings or LayerSettings("bf16", method_config("quest"), frozenset())
        rows, columns = self.shape(name)
        bias = f"{name}.bias" in hf_names(self.model)
        with without_numbers():
            return QuantLinear(columns, rows, bias, settings.bits, settings.quant)

    @cached_property
    def _tensors(self) -> StoredTensors:
        return StoredTensors(self.folder)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.config["dtype"])
        return dtype

    def shape(self, name: str) -> tuple[int, int]:
        """``[N, K]`` of one of our layers."""
        widths = {layer: (rows, columns) for layer, columns, rows in block_linears(self.model)}
        return widths[name]

    def values(self, name: str) -> tuple[Tensor, bool]:
        """fp32 ``[N, K]`` of one of our layers, and whether they multiply what it is given: else
        they are in the space of its codes."""
        weight = hf_names(self.model)[f"{name}.weight"]
        layer = weight.removesuffix(".weight")
        linear = self._linear(name)
        if self.settings is None or layer in self.settings.skipped:
            planned = Planned(self.dtype, tuple(linear.weight.shape))
            return self._tensors.read(weight, planned).float(), True
        parts = planned_layer(linear, self.dtype)
        guarded = GuardedLinear.empty(linear).to_empty(device="cpu")
        state = {key: self._tensors.read(f"{layer}.{key}", each) for key, each in parts.items()}
        guarded.load_state_dict(state)
        return guarded.values().float(), False
