"""The rules of methods: which pieces go together, and what the message says where they do not."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from questtrain.config import QuantConfig, check_sparse_width, parse_bits, validate, validate_quant
from questtrain.errors import UserError

if TYPE_CHECKING:
    from tests.conftest import Compose

METHODS = {
    file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in (resources.files("questtrain.conf") / "method").iterdir()
    if file.name.endswith(".yaml")
}
LEARNED = ("lsq", "lsq-plus", "pact")
GAUSSIAN = ("quest", "quest-noht", "clip", "ste")
DENSE_BITS = ("w1a1", "w1.58a1.58", "w4a4", "w8a8", "fp4", "w4a16", "w16a4", "w2afp4", "wfp4a8")
SPARSE_BITS = ("w4s24a4", "w1s24a16", "wfp4s24afp4")


def method(name: str, **settings: Any) -> QuantConfig:
    return QuantConfig(**{**METHODS[name], **settings})


def refusal(quant: QuantConfig, bits: str) -> str:
    """The message with which the pair is refused."""
    with pytest.raises(UserError) as caught:
        validate_quant(quant, parse_bits(bits))
    return str(caught.value)


def test_each_method_is_named_after_its_file() -> None:
    """The seven methods of the paper's comparisons, each a file of settings that differ."""
    assert set(METHODS) == {*LEARNED, *GAUSSIAN}
    assert all(settings["method"] == name for name, settings in METHODS.items())
    configs = [method(name) for name in METHODS]
    assert len({repr(dataclasses.replace(quant, method="")) for quant in configs}) == len(METHODS)


@pytest.mark.parametrize("grid", ["centred", "int"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_every_dense_format(name: str, grid: str) -> None:
    """Dense formats go with every method and grid, but for 1 bit and FP4 on the grid with zero;
    sparse ones with Gaussian scales."""
    formats = DENSE_BITS + (SPARSE_BITS if name in GAUSSIAN else ())
    for bits in formats:
        one_bit = bits.startswith("w1") and not bits.startswith("w1.58")
        no_integers = "int" not in (parse_bits(bits).weight.kind, parse_bits(bits).activation.kind)
        if grid == "centred" or not (one_bit or no_integers):
            validate_quant(method(name, grid=grid), parse_bits(bits))


@pytest.mark.parametrize("bits", ["fp4", "wfp4a16", "w16afp4", "wfp4s24afp4"])
def test_the_grid_of_integers_is_not_of_fp4(bits: str) -> None:
    """Where no operand has an integer format, the setting would do nothing: it is refused."""
    message = refusal(method("quest", grid="int"), bits)
    for part in ("quant.grid=int", str(parse_bits(bits)), "w4a4"):
        assert part in message
    validate_quant(method("quest", grid="int"), parse_bits("wfp4a8"))


@pytest.mark.parametrize("bits", ["w1a1", "w1a4", "w4a1", "w1a16", "w16a1", "w1s24a4"])
@pytest.mark.parametrize("name", METHODS)
def test_one_bit_has_no_grid_with_zero(name: str, bits: str) -> None:
    """Zero and nothing beside it: the message says which operand and what else to choose."""
    message = refusal(method(name, grid="int"), bits)
    for part in ("quant.grid=int", bits, "1-bit", "w1.58a1.58", "quant.grid=centred"):
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "close"),
    [
        ("grid", "integer", "int"),
        ("grid", "centered", "centred"),
        ("grid", "uniform", None),
        ("scale", "gausian", "gaussian"),
        ("scale", "learned_step", "learned-step"),
        ("scale", "learned-clipping", "learned-clip"),
    ],
)
def test_unknown_pieces_name_the_nearest(key: str, value: str, close: str | None) -> None:
    """The value, the choices, and the nearest of them where one comes near."""
    message = refusal(method("quest", **{key: value}), "w4a4")
    assert f"unknown quant.{key} '{value}': choose from" in message
    assert message.endswith(f"Did you mean '{close}'?") == (close is not None)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("key", "value"), [("trust_scale", 1.0), ("trust_scale", float("inf")), ("trust_error", 0.25)]
)
def test_trust_is_of_gaussian_scales(name: str, key: str, value: float) -> None:
    """A learned scale has a range of its own: the message names both values, and a method."""
    message = refusal(method(name, **{key: value}), "w4a4")
    assert f"quant.{key}={value}" in message
    assert f"quant.scale={METHODS[name]['scale']}" in message
    assert "method=quest" in message


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize(
    ("key", "value"),
    [("lr_scale", 0.1), ("scale_weight_decay", 0.5), ("activation_offset", True)],
)
def test_training_a_scale_needs_a_learned_one(name: str, key: str, value: float) -> None:
    """The message names the setting with its value, the method that has no use for it, and those
    that have."""
    message = refusal(method(name, **{key: value}), "w4a4")
    assert f"quant.{key}={value}" in message
    assert f"method {name} " in message
    for advised in LEARNED:
        assert advised in message


def test_two_forms_of_trust_are_one_too_many() -> None:
    """Both values are named."""
    message = refusal(method("quest", trust_scale=1.1, trust_error=0.2), "w4a4")
    assert "quant.trust_scale=1.1" in message
    assert "quant.trust_error=0.2" in message
    assert "give one" in message


@pytest.mark.parametrize("name", ["clip", "ste"])
def test_a_method_with_trust_takes_no_second_form(name: str) -> None:
    """clip and ste set t already."""
    assert "give one" in refusal(method(name, trust_error=0.2), "w4a4")


@pytest.mark.parametrize("bits", SPARSE_BITS)
@pytest.mark.parametrize("name", LEARNED)
def test_sparsity_goes_with_gaussian_scales(name: str, bits: str) -> None:
    """The message names the format, the scale and the methods that have sparsity."""
    message = refusal(method(name), bits)
    for part in (f"bits={bits}", f"quant.scale={METHODS[name]['scale']}", "quest", "clip", "ste"):
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("lr_scale", 0.0, "positive"),
        ("lr_scale", -1.0, "positive"),
        ("lr_scale", float("nan"), "positive"),
        ("lr_scale", float("inf"), "positive"),
        ("scale_weight_decay", -0.1, "at least 0"),
        ("scale_weight_decay", float("nan"), "at least 0"),
        ("scale_weight_decay", float("inf"), "at most 1e6"),
    ],
)
@pytest.mark.parametrize("name", LEARNED)
def test_learning_needs_sensible_numbers(name: str, key: str, value: float, advice: str) -> None:
    """The message names the value and says what it must be."""
    message = refusal(method(name, **{key: value}), "w4a4")
    assert f"quant.{key}={value}" in message
    assert advice in message


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lsq", {"rotation": "hadamard", "lr_scale": 0.01, "scale_weight_decay": 0.0}),
        ("pact", {"rotation": "hadamard", "activation_offset": True}),
        ("quest", {"lr_scale": 1.0, "scale_weight_decay": 0.0, "activation_offset": False}),
        ("quest", {"trust_error": float("inf")}),
        ("quest-noht", {"weight_rotation": "hadamard-back"}),
        ("clip", {"trust_scale": 1.5}),
    ],
)
def test_valid_compositions_pass(name: str, settings: dict[str, Any]) -> None:
    """Pieces that go together, and settings at the value that means nothing."""
    for bits in ("w4a4", "fp4", "w2a16"):
        validate_quant(method(name, **settings), parse_bits(bits))


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("layers.0.atention.q_proj", "Did you mean 'layers.0.attention.q_proj'?"),
        ("lm_heat", "Did you mean 'lm_head'?"),
        ("layers.99.*", "layers.0.attention.q_proj"),
        ("*.gate", "* matches anything"),
        ("embed_tokens", "layers.0.attention.q_proj"),
        ("", "* matches anything"),
    ],
)
def test_a_skip_pattern_must_match_a_layer(compose: Compose, pattern: str, advice: str) -> None:
    """A pattern without a layer would silently quantize what was meant to be left."""
    config = compose("30M", quant={"skip": ["lm_head", pattern]})
    with pytest.raises(UserError) as caught:
        validate(config)
    assert f"quant.skip: {pattern!r} matches no linear layer of 30M" in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "skip",
    [
        [],
        ["layers.[!3].*"],
        ["lm_head"],
        ["layers.5.mlp.down_proj"],
        ["layers.[01].*", "*.o_proj"],
        ["layers.?.attention.?_proj"],
    ],
)
def test_skip_patterns_that_match_pass(compose: Compose, skip: list[str]) -> None:
    """Whole dotted names, shell-style patterns, the head, or nothing at all."""
    validate(compose("30M", quant={"skip": skip}))


@pytest.mark.parametrize("patterns", [["*"], ["layers.*"], ["lm_head", "*.?_proj", "*.mlp.*"]])
def test_skipping_every_layer_is_no_quantized_run(compose: Compose, patterns: list[str]) -> None:
    """It would be recorded as W4A4 with the loss of BF16; without quantization it is welcome."""
    with pytest.raises(UserError, match=r"quant\.skip=.* leaves no layer .* choose bits=bf16"):
        validate(compose("30M", bits="w4a4", quant={"skip": patterns}))
    validate(compose("30M", bits="bf16", quant={"skip": patterns}))


def test_an_unquantized_run_has_no_rules_of_formats(compose: Compose) -> None:
    """bf16 next to every method, grid and width."""
    for settings in METHODS.values():
        quant = {**settings, "grid": "int"}
        validate(compose("30M", bits="bf16", quant=quant, model={"intermediate_size": 1002}))


@pytest.mark.parametrize(
    ("quant", "named"),
    [
        ({"skip": ["nothing_like_this"]}, "quant.skip: 'nothing_like_this'"),
        ({"trust_scale": -1.0}, "quant.trust_scale=-1.0"),
        ({"trust_scale": 1.0, "trust_error": 1.0}, "quant.trust_error=1.0"),
        ({"hadamard_block": 100}, "quant.hadamard_block=100"),
        ({"lr_scale": 0.5}, "quant.lr_scale=0.5"),
        ({"scale": "learned-step", "trust_scale": 1.0}, "quant.trust_scale=1.0"),
        ({"grid": "uniform"}, "quant.grid 'uniform'"),
    ],
)
def test_a_method_is_judged_in_an_unquantized_run_too(
    compose: Compose, quant: dict[str, Any], named: str
) -> None:
    """What is wrong with a setting does not wait for the run that uses it."""
    with pytest.raises(UserError) as caught:
        validate(compose("30M", bits="bf16", quant=quant))
    assert named in str(caught.value)


@pytest.mark.parametrize(("width", "close"), [(1004, 1008), (1002, 1000), (4, 8), (1, 8)])
def test_sparsity_needs_groups_of_eight(compose: Compose, width: int, close: int) -> None:
    """A width that is no multiple of 8 is named with the nearest that is; dense, it passes."""
    expected = f"width of {width} is no multiple of 8.*2:4 sparsity.*nearest is {close}"
    with pytest.raises(UserError, match=expected):
        check_sparse_width(width)
    unrotated, model = {"rotation": "none"}, {"intermediate_size": width}
    with pytest.raises(UserError, match=expected):
        validate(compose("30M", bits="w4s24a4", quant=unrotated, model=model))
    validate(compose("30M", bits="w4a4", quant=unrotated, model=model))
    check_sparse_width(close)


@pytest.mark.parametrize("bits", SPARSE_BITS)
@pytest.mark.parametrize("size", ["nano", "30M", "800M"])
def test_packaged_models_can_be_sparse(compose: Compose, size: str, bits: str) -> None:
    """All their widths are multiples of 8; the canonical name is kept."""
    config = compose(size, bits=bits.upper())
    validate(config)
    assert config.bits == bits
