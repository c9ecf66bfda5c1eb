"""The map between our models and Hugging Face's folders: names, config.json, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from questtrain.config import ModelConfig, RopeScaling, non_embedding_params
from questtrain.errors import UserError
from questtrain.model.huggingface import hf_config, model_config_of
from tests.model.family import FAMILY, LLAMA3, small_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
SCALED = RopeScaling("llama3", **LLAMA3)


def model(**changes: Any) -> ModelConfig:
    config = small_model(**changes)
    config.nominal_params = non_embedding_params(config)
    return config


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_a_config_json_there_and_back(changes: dict[str, Any]) -> None:
    config = model(**changes)
    assert model_config_of(hf_config(config, 512), "small") == config


def test_both_spellings_of_rotary_positions() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = {**LLAMA, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}
    expected = model(rope_theta=5e5, rope_scaling=SCALED, norm_eps=1e-6)
    assert model_config_of(old, "small") == model_config_of(new, "small") == expected
    context = {key: value for key, value in LLAMA3.items() if "max_position" not in key}
    given = {**LLAMA, "rope_scaling": {"rope_type": "llama3", **context}}
    found = model_config_of(given).rope_scaling
    assert found is not None
    assert found.original_max_position_embeddings == 512  # what transformers takes
    for none in (None, {}, {"rope_type": "default"}):
        assert model_config_of({**LLAMA, "rope_scaling": none}).rope_scaling is None


def test_what_transformers_takes_where_a_key_is_left_out() -> None:
    """Its defaults, which differ by model_type."""
    assert model_config_of(LLAMA).norm_eps == 1e-6
    assert model_config_of({**LLAMA, "num_key_value_heads": None}).num_kv_heads is None
    qwen3 = model_config_of({**LLAMA, "model_type": "qwen3", "num_key_value_heads": 2})
    assert (qwen3.head_dim, qwen3.num_kv_heads, qwen3.qk_norm) == (128, 2, True)
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": None, "num_attention_heads": 8}
    assert model_config_of(mistral) == model_config_of({**mistral, "num_key_value_heads": 8})


@pytest.mark.parametrize(
    "window",
    [
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 512},
        {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": False},
        {
            "model_type": "qwen2",
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 2,
        },
    ],
)
def test_windows_that_hold_the_whole_context_are_none(window: dict[str, Any]) -> None:
    assert model_config_of({**LLAMA, **window}).num_kv_heads == 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mixtral"}, "model_type='mixtral' .* llama, mistral, qwen2, qwen3"),
    ({"model_type": None}, "model_type=None"),
    ({"hidden_size": None}, "hidden_size is not set, which a llama model needs"),
    ({"hidden_size": "wide"}, "hidden_size='wide' must be a whole number"),
    ({"num_key_value_heads": 3}, "num_kv_heads=3 .* nearest that does is 2"),
    ({"head_dim": 33}, "head_dim=33: .* nearest that does is 32"),
    ({"attention_bias": True}, "attention_bias=True .* o_proj .* qwen2"),
    ({"mlp_bias": True}, "mlp_bias=True is not possible"),
    ({"hidden_act": "gelu"}, "hidden_act=gelu is not possible: SwiGLU"),
    ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not possible"),
    ({"quantization_config": {"bits": 4}}, "quantization_config=.* dequantize"),
    ({"num_local_experts": 8}, "num_local_experts=8 .* no experts"),
    ({"layer_types": ["sliding_attention"]}, "layer_types=.*full_attention"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type='yarn' .* default, linear"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is not set"),
    ({"rope_scaling": [2]}, "rope_scaling=.2. must be a group"),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters has .* for full_attention"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not possible"),
    (
        {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1}},
        "must be below .*high_freq_factor=1:",
    ),
    ({"model_type": "mistral", "max_position_embeddings": 8192}, "sliding_window=4096"),
    (
        {"model_type": "qwen2", "num_key_value_heads": 4, "use_sliding_window": True}
        | {"sliding_window": 64, "max_window_layers": 1},
        "sliding_window=64",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_the_model_cannot_honour_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_config_of({**LLAMA, **changes})


def test_a_model_of_no_class_is_not_written() -> None:
    with pytest.raises(UserError, match="no class of transformers has both"):
        hf_config(model(qkv_bias=True, qk_norm=True), 512)
