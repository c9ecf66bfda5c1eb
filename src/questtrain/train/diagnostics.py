"""What quantization does to gradients: figures 2, 8 and 9, measured on a model as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.config import TrainConfig
from questtrain.data import TokenSplit, validation_batches
from questtrain.errors import UserError
from questtrain.model import Llama
from questtrain.quant import Quantizer, QuantLinear
from questtrain.train.evaluate import Loss

ROWS = 8
"""Sequences in a batch: a gradient of each block's activation must fit beside the model."""


def diagnostic_batches(config: TrainConfig, shards: TokenSplit, count: int) -> Iterator[np.ndarray]:
    """``count`` validation batches of int64 ``[rows, T+1]``, at most 8 rows each."""
    rows = min(ROWS, config.micro_batch_size or config.batch_size)
    return validation_batches(
        shards, rows, config.sequence_length, count * rows * config.sequence_length
    )


def weight_quantizers(model: Llama) -> list[tuple[QuantLinear, Quantizer]]:
    """The linear layers with quantized weights; UserError if there is none."""
    found = [
        (layer, layer.weight_quantizer)
        for layer in model.modules()
        if isinstance(layer, QuantLinear) and isinstance(layer.weight_quantizer, Quantizer)
    ]
    if not found:
        raise UserError("the weights of this run are not quantized: they have no mask.")
    return found


def masked_fraction(model: Llama) -> float:
    """The fraction of quantized weights with M = 0: those that no gradient reaches (figure 8)."""
    masked = total = 0
    for layer, quantizer in weight_quantizers(model):
        masked += int((~quantizer.mask(layer.weight)).sum())
        total += layer.weight.numel()
    return masked / total


def expected_masked_fraction(model: Llama) -> float:
    """`masked_fraction` if all weights were exactly Gaussian: figure 8's theoretical line."""
    _, quantizer = weight_quantizers(model)[0]
    return quantizer.expected_masked_fraction()


def gradient_alignment(model: Llama, loss_of: Loss, tokens_BT: Tensor) -> list[float]:
    """Figure 2: for each block, the cosine similarity of two gradients of the loss with respect to
    the block's output: the estimator's, and the one when activations are not quantized.

    Weights stay quantized in both. ``tokens_BT`` is int64 ``[B, T+1]``; ``loss_of`` is eager.
    """
    estimated = _block_gradients(model, loss_of, tokens_BT)
    with without_activation_quantization(model):
        true = _block_gradients(model, loss_of, tokens_BT)
    return [
        float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))
        for a, b in zip(estimated, true, strict=True)
    ]


@contextmanager
def without_activation_quantization(model: Llama) -> Iterator[None]:
    """Activations go through unrounded, in the space where their weights expect them.

    UserError if the model quantizes none.
    """
    quantizers = {
        layer: layer.activation_quantizer
        for layer in model.modules()
        if isinstance(layer, QuantLinear) and isinstance(layer.activation_quantizer, Quantizer)
    }
    if not quantizers:
        raise UserError("the activations of this run are not quantized: nothing to align.")
    try:
        for layer, quantizer in quantizers.items():
            layer.activation_quantizer = quantizer.unquantized()
        yield
    finally:
        for layer, quantizer in quantizers.items():
            layer.activation_quantizer = quantizer


def diagnostic_metrics(model: Llama, loss_of: Loss, tokens_BT: Tensor) -> dict[str, Any]:
    """The row that a run logs every ``train.diagnose_every`` steps; without the parts that its
    formats leave undefined."""
    row: dict[str, Any] = {}
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    if any(isinstance(layer.weight_quantizer, Quantizer) for layer in layers):
        row["weight_masked_fraction"] = masked_fraction(model)
        row["expected_masked_fraction"] = expected_masked_fraction(model)
    if any(isinstance(layer.activation_quantizer, Quantizer) for layer in layers):
        by_block = gradient_alignment(model, loss_of, tokens_BT)
        row["gradient_alignment"] = float(np.mean(by_block))
        row["gradient_alignment_by_block"] = by_block
    return row


def _block_gradients(model: Llama, loss_of: Loss, tokens_BT: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the loss with respect to each block's output, first block first."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in model.layers
    ]
    try:
        loss = loss_of(tokens_BT[:, :-1], tokens_BT[:, 1:])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.autograd.grad(loss, outputs)
