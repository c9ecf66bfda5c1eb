"""Validation at the edge: each broken rule is answered with the value and the nearest choice."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questtrain.config import hadamard_block, is_skipped, validate
from questtrain.errors import UserError, nearest, unknown

if TYPE_CHECKING:
    from tests.conftest import Compose

BROKEN: list[tuple[dict[str, Any], str, str]] = [
    # overrides, the setting that the message names, the advice that it gives
    ({"model": {"hidden_size": 650}}, "model.hidden_size=650", "640 and 656"),
    ({"model": {"hidden_size": 8}}, "model.hidden_size=8", "16"),
    ({"model": {"hidden_size": 0}}, "model.hidden_size=0", "at least 1"),
    ({"model": {"num_layers": -1}}, "model.num_layers=-1", "at least 1"),
    ({"model": {"num_heads": 6}}, "model.num_heads=6", "nearest that does is 5"),
    ({"model": {"num_heads": 640}}, "model.num_heads=640", "nearest that does is 320"),
    ({"model": {"num_kv_heads": 2}}, "model.num_kv_heads=2", "nearest that does is 1"),
    ({"model": {"num_kv_heads": 10}}, "model.num_kv_heads=10", "nearest that does is 5"),
    ({"model": {"num_kv_heads": 0}}, "model.num_kv_heads=0", "at least 1"),
    ({"model": {"head_dim": 24}}, "model.head_dim=24", "the nearest that does is 32"),
    ({"model": {"head_dim": 63, "num_heads": 8}}, "model.head_dim=63", "does is 64"),
    (
        {"model": {"rope_scaling": {"rope_type": "llama3", "factor": 0.5}}},
        "model.rope_scaling.factor=0.5",
        "at least 1",
    ),
    (
        {"model": {"rope_scaling": {"rope_type": "yarn", "factor": 2}}},
        "unknown model.rope_scaling.rope_type 'yarn'",
        "linear, llama3",
    ),
    (
        {"model": {"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4}}},
        "model.rope_scaling.high_freq_factor=4",
        "Llama 3 has 1 and 4",
    ),
    ({"model": {"intermediate_size": 1000}}, "1000", "nearest: 992"),
    ({"model": {"intermediate_size": -256}}, "model.intermediate_size=-256", "at least 1"),
    ({"model": {"vocab_size": 0}}, "model.vocab_size=0", "at least 1"),
    ({"quant": {"hadamard_block": 8}}, "quant.hadamard_block=8", "at least 16"),
    ({"quant": {"hadamard_block": 100}}, "quant.hadamard_block=100", "nearest is 128"),
    ({"quant": {"hadamard_block": 0}}, "quant.hadamard_block=0", "at least 16"),
    ({"quant": {"trust_scale": 0.0}}, "quant.trust_scale=0.0", "positive"),
    ({"quant": {"trust_scale": float("nan")}}, "quant.trust_scale=nan", "positive"),
    ({"quant": {"trust_error": -0.1}}, "quant.trust_error=-0.1", "positive"),
    ({"quant": {"trust_scale": 1.0, "trust_error": 0.1}}, "quant.trust_error", "give one"),
    ({"quant": {"rotation": "hadamart"}}, "quant.rotation 'hadamart'", "'hadamard'"),
    ({"quant": {"weight_rotation": "back"}}, "quant.weight_rotation 'back'", "hadamard-back"),
    ({"quant": {"activation_rotation": "nome"}}, "quant.activation_rotation 'nome'", "'none'"),
    (
        {"quant": {"weight_rotation": "hadamard", "activation_rotation": "none"}},
        "quant.weight_rotation=hadamard and quant.activation_rotation=none",
        "choose hadamard for both",
    ),
    ({"bits": "w4a9"}, "'w4a9'", "'w4a8'"),
    ({"micro_batch_size": 100}, "micro_batch_size=100", "nearest that does is 128"),
    ({"micro_batch_size": 0}, "micro_batch_size=0", "at least 1"),
    ({"micro_batch_size": -4}, "micro_batch_size=-4", "at least 1"),
    ({"batch_size": 0}, "batch_size=0", "at least 1"),
    ({"sequence_length": 0}, "sequence_length=0", "at least 2"),
    ({"lr": -1e-3}, "lr=-0.001", "positive"),
    ({"lr": float("inf")}, "lr=inf", "positive"),
    ({"tokens_per_param": 0.0}, "tokens_per_param=0.0", "positive"),
    ({"tokens_per_param": 1e-6}, "tokens_per_param=1e-06", "raise tokens_per_param"),
    ({"max_steps": 0}, "max_steps=0", "at least 1"),
    ({"log_every": 0}, "log_every=0", "at least 1"),
    ({"checkpoint_every": -5}, "checkpoint_every=-5", "at least 1"),
    ({"train": {"keep_checkpoints": 0}}, "train.keep_checkpoints=0", "at least 1"),
    ({"train": {"diagnose_every": -1}}, "train.diagnose_every=-1", "at least 1"),
    ({"train": {"eval_tasks_every": 9}}, "train.eval_tasks_every=9", "needs train.eval_tasks,"),
    ({"train": {"eval_tasks_limit": 9}}, "train.eval_tasks_limit=9", "bpb:FILE, core"),
    ({"train": {"eval_tasks_datasets": "d"}}, "train.eval_tasks_datasets=d", "needs"),
    ({"train": {"eval_tasks_include_path": "d"}}, "train.eval_tasks_include_path=d", "needs"),
    ({"train": {"eval_tasks": ["bpb"]}}, "train.eval_tasks: 'bpb'", "write bpb:FILE"),
    ({"compile": "ture"}, "compile 'ture'", "'true'"),
    ({"resume": "newer"}, "resume 'newer'", "'never'"),
    ({"train": {"autocast": "bf61"}}, "train.autocast 'bf61'", "'bf16'"),
]


@pytest.mark.parametrize(
    ("overrides", "names", "advises"), BROKEN, ids=[f"{names}" for _, names, _ in BROKEN]
)
def test_a_broken_rule_is_named_with_advice(
    compose: Compose, overrides: dict[str, Any], names: str, advises: str
) -> None:
    """The message repeats what was given and says what would be valid."""
    with pytest.raises(UserError) as caught:
        validate(compose("30M", **overrides))
    assert names in str(caught.value)
    assert advises in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"bits": "bf16", "model": {"intermediate_size": 1000}},
        {"quant": {"rotation": "none"}, "model": {"intermediate_size": 1000}},
        {"quant": {"trust_scale": float("inf")}},
        {"quant": {"hadamard_block": 16}},
        {"model": {"num_heads": 320}},
        {"train": {"eval_tasks": ["bpb:x.txt"], "eval_tasks_every": 9, "eval_tasks_limit": 1}},
    ],
)
def test_valid_configs_pass(compose: Compose, overrides: dict[str, Any]) -> None:
    """Rules that do not concern a config do not reject it; infinite trust is valid (STE)."""
    validate(compose("30M", **overrides))


def test_validation_fills_in_what_it_resolves(compose: Compose) -> None:
    """Bits become canonical, and the micro-batch a number no larger than the batch."""
    config = compose(bits="W16A16", batch_size=8, micro_batch_size=None)
    validate(config)
    assert (config.bits, config.micro_batch_size) == ("bf16", 8)
    config = compose(batch_size=8, micro_batch_size=64)
    validate(config)
    assert config.micro_batch_size == 8


@pytest.mark.parametrize(
    "size", [f.name[:-5] for f in (resources.files("questtrain.conf") / "model").iterdir()
             if f.name.endswith(".yaml")]
)  # fmt: skip
def test_every_packaged_model_is_valid(compose: Compose, size: str) -> None:
    """Each YAML in conf/model makes a valid run and is named after its file."""
    config = compose(size)
    validate(config)
    assert config.model.name == size


@given(st.integers(1, 5000), st.sampled_from([16, 32, 64, 128, 256]))
def test_hadamard_block_is_the_largest_power_of_two(width: int, block: int) -> None:
    """The block divides the width, the next larger one would not; under 16 raises."""
    largest = max(size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if width % size == 0)
    if largest < 16:
        with pytest.raises(UserError, match=f"width of {width} .* multiple of 16"):
            hadamard_block(width, block)
    else:
        assert hadamard_block(width, block) == min(largest, block)


@pytest.mark.parametrize(
    ("name", "patterns", "skipped"),
    [
        ("lm_head", ["lm_head"], True),
        ("layers.0.mlp.down_proj", ["lm_head"], False),
        ("layers.0.mlp.down_proj", ["*.down_proj"], True),
        ("layers.10.mlp.up_proj", ["layers.1.*"], False),
        ("layers.1.mlp.up_proj", ["layers.[01].*"], True),
        ("layers.0.attention.q_proj", [], False),
    ],
)
def test_skip_patterns(name: str, patterns: list[str], skipped: bool) -> None:
    """Patterns are shell-style and match the whole dotted name."""
    assert is_skipped(name, patterns) is skipped


def test_unknown_lists_the_choices_and_the_nearest() -> None:
    """A misspelling is answered with the one it resembles, nonsense only with the list."""
    error = unknown("model", "110M", ["30M", "100M"])
    assert re.fullmatch(r"unknown model '110M': choose from 30M, 100M\. Did .*'100M'\?", str(error))
    assert "Did you mean" not in str(unknown("model", "zzz", ["30M", "100M"]))
    assert nearest("HADAMARD", ["hadamard"]) == "hadamard"
