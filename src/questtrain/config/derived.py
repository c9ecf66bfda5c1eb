"""Quantities that follow from a config by arithmetic: parameters, tokens, FLOPs, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from questtrain.config.bits import Bits, NumberFormat, parse_bits
from questtrain.config.schema import ModelConfig, QuantConfig, TrainConfig
from questtrain.config.skip import is_skipped

FFN_MULTIPLE = 256
MASK_BYTES = 1 / 8
HEAD_ROWS = 4096
"""Rows whose logits there are at once (`questtrain.kernels.linear_cross_entropy`)."""


def intermediate_size(model: ModelConfig) -> int:
    """SwiGLU width: 8/3 of the hidden size, rounded up to a multiple of 256, unless given."""
    if model.intermediate_size is not None:
        return model.intermediate_size
    width = 8 * model.hidden_size // 3
    return -(-width // FFN_MULTIPLE) * FFN_MULTIPLE


def block_linears(model: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Name, input and output width of the blocks' seven linear layers, block by block."""
    hidden, width = model.hidden_size, intermediate_size(model)
    for layer in range(model.num_layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"layers.{layer}.attention.{name}", hidden, hidden
        yield f"layers.{layer}.mlp.gate_proj", hidden, width
        yield f"layers.{layer}.mlp.up_proj", hidden, width
        yield f"layers.{layer}.mlp.down_proj", width, hidden


def quantized_params(model: ModelConfig) -> int:
    """Weights of the blocks' linear layers."""
    return sum(inputs * outputs for _, inputs, outputs in block_linears(model))


def non_embedding_params(model: ModelConfig) -> int:
    """Everything but the embedding and the LM head: the N of the scaling law."""
    norms = (2 * model.num_layers + 1) * model.hidden_size
    return quantized_params(model) + norms


def total_params(model: ModelConfig, vocab_size: int) -> int:
    """Parameters with the (untied) embedding and LM head."""
    return non_embedding_params(model) + 2 * vocab_size * model.hidden_size


def tokens(config: TrainConfig) -> int:
    """Training tokens that the run will see: whole steps of whole batches."""
    return steps(config) * config.batch_size * config.sequence_length


def steps(config: TrainConfig) -> int:
    """Optimizer steps: tokens_per_param × nominal size in whole batches, at most max_steps."""
    wanted = config.tokens_per_param * config.model.nominal_params
    derived = int(wanted // (config.batch_size * config.sequence_length))
    return derived if config.max_steps is None else min(derived, config.max_steps)


def flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: int) -> float:
    """Training FLOPs a token (forward + backward = 3 × forward), recomputation not counted.

    Matrix products only: 6 a weight for the block linears and the LM head, and causal attention's
    two products, ``12·layers·hidden·length`` halved by the causal mask.
    """
    linears = quantized_params(model) + vocab_size * model.hidden_size
    attention = model.num_layers * model.hidden_size * sequence_length
    return 6.0 * linears + 6.0 * attention


def packed_block_bytes(
    model: ModelConfig, bits: Bits, skip: Sequence[str] = (), quant: QuantConfig | None = None
) -> int:
    """Bytes of the block linears' weights, and bf16 for the layers that ``skip`` names: packed
    codes, and one scale an output row or group of columns, of fp32 unless ``quant`` says 16 bits.
    """
    quant = QuantConfig() if quant is None else quant
    scale_bytes = 4 if quant.scale_dtype == "float32" else 2
    total = 0.0
    for name, inputs, outputs in block_linears(model):
        if not bits.weight.quantized or is_skipped(name, skip):
            total += 2 * inputs * outputs
        else:
            scales = 1 if quant.group_size is None else inputs // quant.group_size
            total += outputs * (inputs * bits.weight.storage_bits / 8 + scales * scale_bytes)
    return int(total)


def training_bytes(config: TrainConfig, vocab_size: int) -> int:
    """Estimated peak device memory of training with the kernels, in bytes.

    Weights, gradients and AdamW's two moments in fp32 (16 bytes a parameter); the weights as the
    products take them; what the blocks keep of a micro-batch for the backward; a chunk of logits.
    Within 6% of the peaks measured on an H100 (30M, 100M and 800M in BF16 and W4A4).
    """
    model, bits = config.model, parse_bits(config.bits)
    hidden, width = model.hidden_size, intermediate_size(model)
    rows = (config.micro_batch_size or config.batch_size) * config.sequence_length
    quantized = bits.weight.quantized and bits.activation.quantized
    if quantized:
        kept = _kept_bytes(bits.activation, config.train.save)
        weight = 1 + MASK_BYTES if config.train.save == "packed" else 1 + MASK_BYTES + 2
    else:
        kept = weight = 2.0
    of_products = kept * (3 * hidden + width)  # what feeds qkv, o, gate and up, down
    beside = 2 * (5 * hidden + 2 * width)  # two residual sums, Q, K, V; gate and up
    attention = 2 * hidden if quantized else 0  # otherwise it is what feeds o
    of_row = of_products + beside + attention
    blocks = rows * model.num_layers * of_row + weight * quantized_params(model)
    head = 2 * min(rows, HEAD_ROWS) * vocab_size + 2 * rows * hidden + 6 * vocab_size * hidden
    return int(16 * total_params(model, vocab_size) + blocks + head)


def _kept_bytes(activation: NumberFormat, save: str) -> float:
    """Of a quantized value and its mask bit."""
    packs = save == "packed" and activation.storage_bits <= 4
    return (activation.storage_bits / 8 if packs else 1) + MASK_BYTES
