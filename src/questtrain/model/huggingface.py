"""A model of ours and a folder of Hugging Face's Llama family: the same parameters, other names.

Pure: it knows config.json and the names of parameters, and imports nothing of transformers. A
`questtrain.model.llama.Llama` is a LlamaForCausalLM; with biases of Q, K and V it is Qwen2's, with
norms of Q and K Qwen3's. Rows of q_proj and k_proj are in the same order (rotary positions turn
elements i and i + width/2 of a head), so that no weight is changed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from questtrain.config import (
    ModelConfig,
    RopeScaling,
    head_dim,
    intermediate_size,
    non_embedding_params,
    num_kv_heads,
    validate_model,
)
from questtrain.config.loading import config_from_mapping
from questtrain.config.ranges import shown
from questtrain.errors import UserError, suggestion

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""model_type of a config.json that can be read → the class that computes it."""

WHERE_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes where a config.json leaves a key out and the value is not a default of
ours, by model_type."""

ALL_TYPES = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
"""The same, of all of them."""

NEEDED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
"""Keys without which a config.json says no model, and what they are here."""

ROPE_TYPES = ("default", "linear", "llama3")

BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **{
        f"attention.{name}.weight": f"self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
    **{
        f"mlp.{name}.weight": f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
    },
}
BIAS_NAMES = {
    f"attention.{name}.bias": f"self_attn.{name}.bias" for name in ("q_proj", "k_proj", "v_proj")
}
QK_NORM_NAMES = {
    f"attention.{name}.weight": f"self_attn.{name}.weight" for name in ("q_norm", "k_norm")
}


def hf_names(model: ModelConfig) -> dict[str, str]:
    """Our name of each of the model's parameters → Hugging Face's; a tied head is no parameter of
    its own. Learned scales of a quantizer, which no such folder holds, are not among them."""
    of_block = dict(BLOCK_NAMES)
    if model.qkv_bias:
        of_block |= BIAS_NAMES
    if model.qk_norm:
        of_block |= QK_NORM_NAMES
    names = {"embed_tokens.weight": "model.embed_tokens.weight"}
    for layer in range(model.num_layers):
        names |= {
            f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
            for ours, theirs in of_block.items()
        }
    names["norm.weight"] = "model.norm.weight"
    if not model.tie_embeddings:
        names["lm_head.weight"] = "lm_head.weight"
    return names


def hf_config(
    model: ModelConfig,
    max_position_embeddings: int,
    dtype: str = "float32",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """What config.json holds of such a model, whose vocabulary is known; ``dtype`` is that of the
    folder's weights. UserError for a model that no class of transformers computes."""
    if model.qkv_bias and model.qk_norm:
        raise UserError(
            "model.qkv_bias=true and model.qk_norm=true: biases are Qwen2's, norms of Q and K"
            " Qwen3's, and no class of transformers has both."
        )
    if model.vocab_size is None:
        raise ValueError("model.vocab_size must be known when the model is written")
    kind = "qwen3" if model.qk_norm else "qwen2" if model.qkv_bias else "llama"
    scaling = None if model.rope_scaling is None else _hf_rope(model.rope_scaling)
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **_sizes(model),
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": model.norm_eps,
        # The spelling that transformers 4 and 5 and other runtimes read.
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        **_of_kind(kind),
    }


def _sizes(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": intermediate_size(model),
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": num_kv_heads(model),
        "head_dim": head_dim(model),
    }


def _of_kind(kind: str) -> dict[str, Any]:
    """Keys of one model_type alone."""
    no_window = {"use_sliding_window": False, "sliding_window": None}
    match kind:
        case "qwen2":
            return no_window
        case "qwen3":
            return {"attention_bias": False, **no_window}
        case _:
            return {"attention_bias": False, "mlp_bias": False}


def _hf_rope(scaling: RopeScaling) -> dict[str, Any]:
    keys = asdict(scaling)
    if scaling.rope_type == "linear":
        keys = {name: keys[name] for name in ("rope_type", "factor")}
    return keys


def model_config_of(hf: Mapping[str, Any], name: str = "imported") -> ModelConfig:
    """The model that a config.json describes, called ``name``; its nominal size is its number of
    parameters without embedding and head. UserError names the key and the value that it cannot
    honour, and what is possible."""
    kind = hf.get("model_type")
    if kind not in ARCHITECTURES:
        close = suggestion(str(kind), ARCHITECTURES)
        raise UserError(
            f"model_type={kind!r} is no model of the Llama family that can be read: it must be one"
            f" of {', '.join(ARCHITECTURES)}.{close}"
        )
    given = {**ALL_TYPES, **WHERE_ABSENT[kind], **hf}
    for key in NEEDED:
        if given.get(key) is None:
            raise UserError(f"{key} is not set, which a {kind} model needs: give its number.")
    rope = _rope_of(given)
    mapping = {
        "name": name,
        "nominal_params": 1,
        **{ours: given[theirs] for theirs, ours in NEEDED.items()},
        "norm_eps": given["rms_norm_eps"],
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope or None,
        "init_std": given["initializer_range"],
        "num_kv_heads": given.get("num_key_value_heads"),
        "head_dim": given.get("head_dim"),
        "tie_embeddings": given["tie_word_embeddings"],
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
    }
    model = config_from_mapping(ModelConfig, mapping)
    _refuse_what_differs(kind, {**given, "num_hidden_layers": model.num_layers})
    validate_model(model)
    model.nominal_params = non_embedding_params(model)
    return _without_what_follows(model)


def _without_what_follows(model: ModelConfig) -> ModelConfig:
    """Widths and numbers as None where they are what None means: such a model is one of ours."""
    if model.num_kv_heads == model.num_heads:
        model.num_kv_heads = None
    if model.head_dim is not None and model.head_dim * model.num_heads == model.hidden_size:
        model.head_dim = None
    return model


def _rope_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta``, and the settings of `RopeScaling` where the positions are scaled: from
    ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before)."""
    spelled = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    found = given.get(spelled) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{spelled}={found!r} must be a group of settings.")
    nested = [key for key, value in found.items() if isinstance(value, Mapping)]
    if nested:
        raise UserError(
            f"{spelled} has settings of its own for {', '.join(nested)}: the model has one rotary"
            " frequency for all layers."
        )
    kind = found.get("rope_type", found.get("type")) or "default"
    if kind not in ROPE_TYPES:
        raise UserError(
            f"{spelled}.rope_type={kind!r} is not possible: the model has rotary positions that are"
            f" {', '.join(ROPE_TYPES)}.{suggestion(str(kind), ROPE_TYPES)}"
        )
    for place, key in ((given, "partial_rotary_factor"), (found, "partial_rotary_factor")):
        if place.get(key) not in (None, 1):
            raise UserError(f"{key}={place[key]!r} is not possible: heads are rotated whole, 1.")
    rope = {"rope_theta": found.get("rope_theta", given["rope_theta"])}
    if kind == "default":
        return rope
    return rope | _scaling_of(spelled, kind, found, given)


def _scaling_of(
    spelled: str, kind: str, found: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    keys = ["factor"]
    if kind == "llama3":
        keys += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        context = given.get("max_position_embeddings")
        found = {"original_max_position_embeddings": context, **found}
    for key in keys:
        if found.get(key) is None:
            raise UserError(f"{spelled}.{key} is not set, which rope_type {kind} needs.")
    return {"rope_type": kind, **{key: found[key] for key in keys}}


Condition = Callable[[Any], bool]

POSSIBLE: dict[str, tuple[Condition, str]] = {
    "hidden_act": (lambda value: value in (None, "silu", "swish"), "SwiGLU is made of silu"),
    "mlp_bias": (lambda value: not value, "the MLP has no biases: false"),
    "attention_bias": (
        lambda value: not value,
        "o_proj has no bias, only q_proj, k_proj and v_proj can have one (model_type qwen2): false",
    ),
    "attention_dropout": (lambda value: not value, "there is no dropout: 0"),
    "quantization_config": (
        lambda value: not value,
        "weights are read as floating-point numbers: dequantize the folder first",
    ),
    "layer_types": (
        lambda value: set(value or ()) <= {"full_attention"},
        "all layers attend to the whole context: full_attention",
    ),
    **{
        key: (lambda value: value in (None, 0, 1), "a block has one MLP, no experts: 1")
        for key in ("num_experts", "num_local_experts", "n_routed_experts")
    },
}
"""Keys whose value the model may be unable to honour: which it can, and in words."""


def _refuse_what_differs(kind: str, given: Mapping[str, Any]) -> None:
    for key, (is_possible, words) in POSSIBLE.items():
        if key in given and not is_possible(given[key]):
            raise UserError(f"{key}={shown(given[key])} is not possible: {words}.")
    if _window_in_use(kind, given):
        raise UserError(
            f"sliding_window={given['sliding_window']!r} is not possible: all layers attend to the"
            f" whole context. {kind} has it where the key is left out, too: give null, or a window"
            " no shorter than max_position_embeddings."
        )


def _window_in_use(kind: str, given: Mapping[str, Any]) -> bool:
    """Whether some layer attends to less than the longest context."""
    window, context = given.get("sliding_window"), given.get("max_position_embeddings")
    if kind == "llama" or window is None:
        return False
    if kind != "mistral":
        layers, first = given["num_hidden_layers"], given.get("max_window_layers", 28)
        if not given.get("use_sliding_window") or (isinstance(first, int) and first >= layers):
            return False
    return not (isinstance(window, int) and isinstance(context, int) and window >= context)
