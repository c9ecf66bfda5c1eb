"""What follows from a config by arithmetic, on the packaged YAML files and against real models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from questtrain.config import (
    ModelConfig,
    QuantConfig,
    embedding_params,
    flops_per_token,
    non_embedding_params,
    packed_block_bytes,
    parse_bits,
    quantized_params,
    query_size,
    steps,
    tokens,
    total_params,
    training_bytes,
    validate,
    vector_params,
)
from questtrain.config.derived import block_linears
from questtrain.model import Llama
from questtrain.quant import QuantLinear
from tests.model.family import FAMILY, small_model

if TYPE_CHECKING:
    from tests.conftest import Compose

# quest.md, "Models and training": parameters without embeddings, tokens, shape, learning rate
TABLE_3 = {
    "30M": (30_482_560, 3e9, (6, 640, 5), 1.2e-3),
    "50M": (49_556_736, 5e9, (7, 768, 6), 1.2e-3),
    "100M": (102_777_856, 10e9, (8, 1024, 8), 6e-4),
    "200M": (203_188_480, 20e9, (10, 1280, 10), 3e-4),
    "430M": (443_068_288, 43e9, (13, 1664, 13), 1.5e-4),
    "800M": (822_151_168, 80e9, (16, 2048, 16), 7.5e-5),
}
BEYOND_THE_PAPER = ("1600M", "3200M")
VOCABULARY = 32_000


@pytest.mark.parametrize("size", TABLE_3)
def test_table_3(compose: Compose, size: str) -> None:
    """Each size has the paper's shape, learning rate and exact parameter count, and at 100 tokens
    a parameter its token count up to the batch that does not fill up."""
    params, table_tokens, shape, lr = TABLE_3[size]
    config = compose(size)
    validate(config)
    model = config.model
    assert (model.num_layers, model.hidden_size, model.num_heads) == shape
    assert non_embedding_params(model) == params
    assert config.lr == lr
    batch_tokens = config.batch_size * config.sequence_length
    assert batch_tokens == 512 * 512
    assert tokens(config) == steps(config) * batch_tokens
    assert 0 <= table_tokens - tokens(config) < batch_tokens


@pytest.mark.parametrize("size", BEYOND_THE_PAPER)
def test_sizes_beyond_the_paper_continue_its_rules(compose: Compose, size: str) -> None:
    """Heads of 128, widths that are multiples of 128, learning rate ∝ 1/N, about N parameters."""
    config = compose(size)
    validate(config)
    model = config.model
    assert model.nominal_params == int(size[:-1]) * 10**6
    assert model.hidden_size == 128 * model.num_heads
    assert non_embedding_params(model) == pytest.approx(model.nominal_params, rel=0.1)
    assert config.lr == pytest.approx(7.5e-5 * 800e6 / model.nominal_params)


@pytest.mark.parametrize("size", [*TABLE_3, *BEYOND_THE_PAPER, "nano"])
def test_counts_are_those_of_the_torch_model(compose: Compose, size: str) -> None:
    """The arithmetic counts exactly the parameters that the model has."""
    assert_counts(compose(size, model={"vocab_size": VOCABULARY}).model)


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_counts_of_the_llama_family(changes: dict[str, Any]) -> None:
    assert_counts(small_model(**changes))


def assert_counts(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Llama(config, "w4a4", QuantConfig())
    vocabulary = config.vocab_size or 0
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    embeddings = {"embed_tokens.weight", "lm_head.weight"} & parameters.keys()
    linears = [m.weight for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(linears) == 7 * config.num_layers
    assert total == total_params(config, vocabulary)
    of_embeddings = sum(parameters[name].numel() for name in embeddings)
    assert of_embeddings == embedding_params(config, vocabulary)
    assert total - of_embeddings == non_embedding_params(config)
    assert sum(weight.numel() for weight in linears) == quantized_params(config)
    vectors = [parameter.numel() for parameter in parameters.values() if parameter.ndim == 1]
    assert sum(vectors) == vector_params(config)


def test_max_steps_cuts_the_run_short(compose: Compose) -> None:
    """max_steps bounds the derived steps from above and never lengthens a run."""
    assert steps(compose(max_steps=7)) == 7
    assert tokens(compose(max_steps=7)) == 7 * 512 * 512
    assert steps(compose(max_steps=10**9)) == steps(compose())
    assert tokens(compose(tokens_per_param=12.5)) == 375_000_000 // 512**2 * 512**2


@pytest.mark.parametrize("changes", [{}, {"head_dim": 32, "num_kv_heads": 1}], ids=str)
def test_flops_against_torch_flop_counter(compose: Compose, changes: dict[str, int]) -> None:
    """Forward + backward is three times forward, as counted by torch; torch counts the products of
    attention in full where causal attention needs half, and the difference is exactly that."""
    length, vocab = 64, 160
    model_config = compose("nano", model={"vocab_size": vocab, "num_layers": 2, **changes}).model
    config = compose("nano").quant
    model = Llama(model_config, "bf16", config)
    batch = torch.zeros(2, length, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(batch).sum()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    counted = (forward.get_total_flops() + backward.get_total_flops()) / batch.numel()
    full_attention = 12 * model_config.num_layers * query_size(model_config) * length
    assert flops_per_token(model_config, vocab, length) == counted - full_attention / 2


def test_packed_800m_is_a_quarter_of_bf16(compose: Compose) -> None:
    """Packed W4A4 blocks with their row scales take at most 0.27 of BF16's bytes."""
    model = compose("800M").model
    bf16 = packed_block_bytes(model, parse_bits("bf16"))
    assert bf16 == 2 * quantized_params(model)
    assert 0.25 < packed_block_bytes(model, parse_bits("w4a4")) / bf16 <= 0.27


PACKED_BITS = {
    "w1a1": 1,
    "w1.58a16": 2,
    "w3a3": 4,
    "w4a4": 4,
    "w5a5": 8,
    "w8a4": 8,
    "fp4": 4,
    "wfp4s24a16": 2.5,
    "w4s24a4": 2.5,
    "w8s24a8": 4.5,
    "w16a4": 16,
}
SKIP: list[list[str]] = [[], ["lm_head"], ["*.o_proj"], ["layers.0.*", "*.down_proj"], ["*"]]


@pytest.mark.parametrize("skip", SKIP, ids=str)
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_packed_bytes_are_those_of_the_layers(compose: Compose, bits: str, skip: list[str]) -> None:
    """Codes at their storage width and an fp32 scale a row, and bf16 for layers that are skipped or
    not quantized, summed over the model's own layers."""
    shape = {"vocab_size": 64, "num_layers": 2, "head_dim": 32, "num_kv_heads": 1}
    config = compose("nano", model=shape, quant={"skip": skip})
    with torch.device("meta"):
        model = Llama(config.model, bits, config.quant)
    expected = 0.0
    for layer in model.layers.modules():
        if not isinstance(layer, nn.Linear):
            continue
        packed = isinstance(layer, QuantLinear) and layer.bits.weight.quantized
        width = PACKED_BITS[bits] if packed else 16
        expected += layer.out_features * (layer.in_features * width / 8 + 4 * packed)
    assert packed_block_bytes(config.model, parse_bits(bits), skip) == expected


@pytest.mark.parametrize(("scale_dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
@pytest.mark.parametrize("group", [None, 16, 64])
def test_packed_bytes_count_scales_as_they_are_stored(
    compose: Compose, scale_dtype: str, size: int, group: int | None
) -> None:
    """One of each row, or of each group of its columns, in its dtype; the codes are the same."""
    model = compose("nano").model
    bits, stored = parse_bits("w4a16"), QuantConfig(scale_dtype=scale_dtype, group_size=group)
    codes = quantized_params(model) // 2
    scales = sum(
        outputs * (1 if group is None else inputs // group)
        for _, inputs, outputs in block_linears(model)
    )
    assert packed_block_bytes(model, bits, quant=stored) == codes + size * scales


def test_sparse_weights_take_five_eighths_of_dense_ones(compose: Compose) -> None:
    """2.5 of 4 bits, but for the row scales."""
    model = compose("800M").model
    sparse, dense = (packed_block_bytes(model, parse_bits(bits)) for bits in ("w4s24a4", "w4a4"))
    assert sparse / dense == pytest.approx(2.5 / 4, abs=2e-3)


def test_training_memory_holds_state_and_grows_with_the_micro_batch(compose: Compose) -> None:
    """At least weights, gradients and two fp32 moments; once the head's chunks are full,
    activations are linear in the batch."""
    sizes = [training_bytes(compose("100M", micro_batch_size=n), VOCABULARY) for n in (8, 9, 10)]
    assert sizes[0] > 16 * total_params(compose("100M").model, VOCABULARY)
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


def test_what_is_computed_again_takes_no_memory(compose: Compose) -> None:
    none, gate_up, blocks = (
        training_bytes(compose("800M", train={"recompute": what}), VOCABULARY)
        for what in ("none", "gate_up", "blocks")
    )
    state = 16 * total_params(compose("800M").model, VOCABULARY)
    assert state < blocks < gate_up < none
    assert none - gate_up > (none - state) / 4


@pytest.mark.parametrize(
    ("size", "rows", "bits", "save", "measured"),
    [
        ("30M", 64, "bf16", "codes", 5.23),
        ("30M", 64, "w4a4", "codes", 4.92),
        ("30M", 64, "w4a4", "packed", 4.52),
        ("100M", 64, "bf16", "codes", 10.91),
        ("100M", 64, "w4a4", "codes", 10.27),
        ("800M", 32, "bf16", "codes", 32.87),
        ("800M", 32, "w4a4", "codes", 32.25),
        ("800M", 32, "w4a4", "packed", 29.28),
    ],
)
def test_training_bytes_agree_with_measurements(
    compose: Compose, size: str, rows: int, bits: str, save: str, measured: float
) -> None:
    """GiB at ``rows`` sequences of 512 tokens at once on an H100, of `questtrain bench train`."""
    config = compose(size, bits=bits, micro_batch_size=rows, train={"save": save})
    assert training_bytes(config, VOCABULARY) / 2**30 == pytest.approx(measured, rel=0.06)
