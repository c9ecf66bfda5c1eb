"""Models with random weights, as inference holds them: BF16 and packed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from questtrain.bench.model.dense import stacked
from questtrain.config import Bits, ModelConfig, QuantConfig
from questtrain.inference.pack import pack
from questtrain.model import Llama


def stacked_model(model: ModelConfig, device: torch.device) -> nn.Module:
    """The rival: a Llama in bf16 throughout, of four products a block as the packed model has."""
    return stacked(_random(model, "bf16", device).to(torch.bfloat16))


def packed_model(
    model: ModelConfig, bits: Bits, device: torch.device, prefill: str = "unpack"
) -> nn.Module:
    """The same shape with packed weights; what is not quantized is bf16. ``prefill`` as in
    `questtrain.inference.pack`."""
    return pack(_random(model, str(bits), device).to(torch.bfloat16), prefill=prefill)


def _random(model: ModelConfig, bits: str, device: torch.device) -> Llama:
    """Initial weights, which the kernels' time does not depend on."""
    with torch.device(device):
        llama = Llama(replace(model), bits, QuantConfig())
    llama.init_weights()
    return llama.eval().requires_grad_(False)


def shape_of(model: ModelConfig, batch_size: int) -> dict[str, Any]:
    """What a row of results says of its model and batch."""
    return {"model": model.name, "layers": model.num_layers, "batch_size": batch_size}


def random_tokens(
    model: ModelConfig, batch_size: int, length: int, device: torch.device
) -> torch.Tensor:
    """int64 ``[batch_size, length]`` token ids."""
    assert model.vocab_size is not None
    return torch.randint(model.vocab_size, (batch_size, length), device=device)
