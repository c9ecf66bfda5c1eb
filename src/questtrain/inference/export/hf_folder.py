"""What a folder that transformers reads holds: its settings as they are written, the tensors of
``format=hf`` as they are planned, and both read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questtrain.config import ModelConfig, block_linears
from questtrain.errors import UserError
from questtrain.inference.export.format import Options
from questtrain.inference.export.source import Source
from questtrain.inference.export.tokenizer_files import write_tokenizer_files
from questtrain.model.hf_quantization import LayerSettings, layer_settings
from questtrain.model.huggingface import hf_config, hf_names, model_config_of
from questtrain.model.meta import without_numbers
from questtrain.quant import QuantLinear
from questtrain.quant.guarded_linear import GuardedLinear
from questtrain.store.files import write_json
from questtrain.store.tensor_files import Planned
from questtrain.store.weight_files import WeightFiles

CONFIG = "config.json"
FLOATS = ("layer.weight", "layer.bias")
"""A `GuardedLinear`'s tensors that are rounded with the embedding, where they are: a weight that is
not quantized, and a bias. Scales never are."""


def within(weight: str, part: str) -> str:
    """``…q_proj.weight`` and ``scales`` → ``…q_proj.scales``."""
    return f"{weight.removesuffix('weight')}{part}"


def planned_layer(linear: QuantLinear, dtype: torch.dtype) -> dict[str, Planned]:
    """The tensors of a layer that is on the meta device, as they come to lie under its name."""
    return {
        key: Planned(dtype if key in FLOATS else tensor.dtype, tuple(tensor.shape))
        for key, tensor in GuardedLinear.empty(linear).state_dict().items()
    }


def config_refusal(source: Source) -> str | None:
    """Why no config.json says the model; None where one does."""
    try:
        hf_config(source.config.model, source.config.sequence_length)
    except UserError as error:
        return f"{error} format=packed holds it."
    return None


def write_settings(
    source: Source, folder: Path, options: Options, quantization: Mapping[str, Any]
) -> None:
    """config.json, with what a format adds to it about ``quantization``, and the tokenizer's
    files."""
    write_config(source, folder, options.torch_dtype, quantization)
    write_tokenizer_files(source.tokenizer, source.config.sequence_length, folder)


def write_config(
    source: Source, folder: Path, dtype: torch.dtype, quantization: Mapping[str, Any]
) -> None:
    """config.json alone; UserError where `config_refusal` says why there is none."""
    config, bos = source.config, source.tokenizer.bos_id
    name = str(dtype).removeprefix("torch.")
    content = hf_config(config.model, config.sequence_length, name, bos, bos, bos)
    write_json(folder / CONFIG, {**content, **quantization})


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

    def _linear(self, name: str, settings: LayerSettings) -> QuantLinear:
        """One of our layers without its numbers."""
        rows, columns = self.shape(name)
        bias = f"{name}.bias" in hf_names(self.model)
        with without_numbers():
            return QuantLinear(columns, rows, bias, settings.bits, settings.quant)

    @cached_property
    def _tensors(self) -> WeightFiles:
        return WeightFiles.of(self.folder)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.config["dtype"])
        return dtype

    def shape(self, name: str) -> tuple[int, int]:
        """``[N, K]`` of one of our layers."""
        widths = {layer: (rows, columns) for layer, columns, rows in block_linears(self.model)}
        return widths[name]

    def _weight(self, name: str) -> str:
        """What the folder calls the weight of one of our layers."""
        return hf_names(self.model)[f"{name}.weight"]

    def has(self, name: str, part: str) -> bool:
        """Whether there is a tensor ``part`` of one of our layers."""
        return within(self._weight(name), part) in self._tensors

    def parts(self, name: str, planned: Mapping[str, Planned]) -> dict[str, Tensor]:
        """The tensors of one of our layers by what `within` puts behind its name."""
        weight = self._weight(name)
        return {
            part: self._tensors.read(within(weight, part), each) for part, each in planned.items()
        }

    def plain_weight(self, name: str) -> Tensor:
        """fp32 ``[N, K]`` of one of our layers whose weight is stored as such."""
        return self.parts(name, {"weight": Planned(self.dtype, self.shape(name))})["weight"].float()

    def values(self, name: str) -> tuple[Tensor, bool]:
        """fp32 ``[N, K]`` of one of our layers, and whether they multiply what it is given: else
        they are in the space of its codes."""
        layer = self._weight(name).removesuffix(".weight")
        if self.settings is None or layer in self.settings.skipped:
            return self.plain_weight(name), True
        linear = self._linear(name, self.settings)
        guarded = GuardedLinear.empty(linear).to_empty(device="cpu")
        guarded.load_state_dict(self.parts(name, planned_layer(linear, self.dtype)))
        return guarded.values().float(), False
