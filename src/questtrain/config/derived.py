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


def head_dim(model: ModelConfig) -> int:
    """A head's width: the hidden size divided among the heads, unless given."""
    return model.head_dim or model.hidden_size // model.num_heads


def num_kv_heads(model: ModelConfig) -> int:
    """Heads of keys and values: as many as of queries, unless given."""
    return model.num_kv_heads or model.num_heads


def query_size(model: ModelConfig) -> int:
    """Width of all heads of queries together, and of what attention gives."""
    return model.num_heads * head_dim(model)


def kv_size(model: ModelConfig) -> int:
    """Width of all heads of keys together, and of values."""
    return num_kv_heads(model) * head_dim(model)


def block_linears(model: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Name, input and output width of the blocks' seven linear layers, block by block."""
    hidden, width = model.hidden_size, intermediate_size(model)
    of_query, of_kv = query_size(model), kv_size(model)
    for layer in range(model.num_layers):
        yield f"layers.{layer}.attention.q_proj", hidden, of_query
        yield f"layers.{layer}.attention.k_proj", hidden, of_kv
        yield f"layers.{layer}.attention.v_proj", hidden, of_kv
        yield f"layers.{layer}.attention.o_proj", of_query, hidden
        yield f"layers.{layer}.mlp.gate_proj", hidden, width
        yield f"layers.{layer}.mlp.up_proj", hidden, width
        yield f"layers.{layer}.mlp.down_proj", width, hidden


def quantized_params(model: ModelConfig) -> int:
    """Weights of the blocks' linear layers."""
    return sum(inputs * outputs for _, inputs, outputs in block_linears(model))


def non_embedding_params(model: ModelConfig) -> int:
    """Everything but the embedding and the LM head: the N of the scaling law."""
    return quantized_params(model) + vector_params(model)


def vector_params(model: ModelConfig) -> int:
    """What is no matrix: the norms' weights and the biases."""
    of_block = 2 * model.hidden_size
    if model.qk_norm:
        of_block += 2 * head_dim(model)
    if model.qkv_bias:
        of_block += query_size(model) + 2 * kv_size(model)
    return model.num_layers * of_block + model.hidden_size


def embedding_params(model: ModelConfig, vocab_size: int) -> int:
    """The embedding and the LM head, once where they are tied."""
    return (1 if model.tie_embeddings else 2) * vocab_size * model.hidden_size


def total_params(model: ModelConfig, vocab_size: int) -> int:
    """Parameters with embedding and LM head."""
    return non_embedding_params(model) + embedding_params(model, vocab_size)


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
    two products, ``12·layers·(heads · head width)·length`` halved by the causal mask.
    """
    linears = quantized_params(model) + vocab_size * model.hidden_size
    attention = model.num_layers * query_size(model) * sequence_length
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
    of_query, of_kv = query_size(model), kv_size(model)
    rows = (config.micro_batch_size or config.batch_size) * config.sequence_length
    quantized = bits.weight.quantized and bits.activation.quantized
    if quantized:
        kept = _kept_bytes(bits.activation, config.train.save)
        weight = 1 + MASK_BYTES if config.train.save == "packed" else 1 + MASK_BYTES + 2
    else:
        kept = weight = 2.0
    # Of a row: what feeds the products, and beside it the residual sum, QKV, or gate and up.
    attention = kept * (hidden + of_query) + 2 * (hidden + of_query + 2 * of_kv)
    attention += 2 * of_query if quantized else 0  # otherwise it is what feeds o
    feed_forward = kept * (hidden + width) + 2 * (hidden + 2 * width)
    summands = 2 * 2 * hidden  # of the residual stream, from which the rest is computed again
    of_layer, once = {
        "none": (attention + feed_forward, 0.0),
        "gate_up": (attention + summands, feed_forward),
        "blocks": (summands, attention + feed_forward),
    }[config.train.recompute]
    blocks = rows * (model.num_layers * of_layer + once) + weight * quantized_params(model)
    head = 2 * min(rows, HEAD_ROWS) * vocab_size + 2 * rows * hidden + 6 * vocab_size * hidden
    return int(16 * total_params(model, vocab_size) + blocks + head)


def _kept_bytes(activation: NumberFormat, save: str) -> float:
    """Of a quantized value and its mask bit."""
    packs = save == "packed" and activation.storage_bits <= 4
    return (activation.storage_bits / 8 if packs else 1) + MASK_BYTES
