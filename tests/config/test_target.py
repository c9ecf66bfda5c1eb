"""`quant.target`: what it sets, what it leaves, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.main import main
from questtrain.config import QuantConfig, TrainConfig, parse_bits, targeted, validate_quant
from questtrain.config.bits import LABELS
from questtrain.config.target import BY_NAME
from questtrain.errors import UserError
from questtrain.quant.method import method_config, method_names

WEIGHT_FILES = ("gguf", "mlx", "compressed-tensors")
WEIGHTS = tuple(f"w{label}a16" for label in LABELS if label != "16")
SET = ("grid", "rotation", "scale_dtype", "group_size")


def configured(words: str) -> TrainConfig:
    return train_config(parse_arguments(["model=nano", "data=stdlib", *words.split()]))


def settings(words: str) -> tuple[Any, ...]:
    """Grid, rotation, scale_dtype and group_size that the command line comes to."""
    quant = configured(words).quant
    return tuple(getattr(quant, key) for key in SET)


def refusal(words: str) -> str:
    with pytest.raises(UserError) as caught:
        configured(words)
    return str(caught.value)


def test_without_a_target_nothing_is_set() -> None:
    assert settings("bits=w4a16") == ("centred", "hadamard", "float32", None)
    assert settings("bits=w4a4") == ("centred", "hadamard", "float32", None)


@pytest.mark.parametrize("bits", WEIGHTS)
def test_what_each_target_sets(bits: str) -> None:
    """llama.cpp's types and compressed-tensors' words hold fewer bits of the grid with zero where
    the centred one needs a bit more; 8 bits have no other. Weight files have no rotation."""
    gguf_grid = "int" if bits in ("w3a16", "w4a16", "w5a16", "w6a16", "w8a16") else "centred"
    packed_grid = "int" if bits in ("w4a16", "w8a16") else "centred"
    expected = {
        "gguf": (gguf_grid, "none", "float16", None),
        "mlx": ("centred", "none", "float16", None),
        "compressed-tensors": (packed_grid, "none", "float32", None),
        "onnx": ("centred", "hadamard", "float32", None),
    }
    for target, values in expected.items():
        quant = targeted(replace(method_config("quest"), target=target), parse_bits(bits))
        assert tuple(getattr(quant, key) for key in SET) == values
    assert expected.keys() == BY_NAME.keys()


@pytest.mark.parametrize("bits", ["w4a4", "w1a1", "w2a8", "w4s24a4", "w16a4", "fp4", "w4s24a16"])
def test_onnx_takes_every_format(bits: str) -> None:
    assert configured(f"bits={bits} quant.target=onnx").quant.rotation == "hadamard"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gguf bits=w4a16 quant.grid=centred", ("centred", "none", "float16", None)),
        ("gguf bits=w2a16 ++quant.grid=int", ("int", "none", "float16", None)),
        ("gguf bits=w4a16 quant.group_size=32", ("int", "none", "float16", 32)),
        ("gguf bits=w4a16 quant.rotation=none", ("int", "none", "float16", None)),
        ("mlx bits=w4a16 quant.scale_dtype=float32", ("centred", "none", "float32", None)),
        ("mlx bits=w4a16 quant.scale_dtype=bfloat16", ("centred", "none", "bfloat16", None)),
        ("onnx bits=w4a16 quant.rotation=none", ("centred", "none", "float32", None)),
        ("gguf bits=w4a16 method=lsq", ("int", "none", "float32", None)),
        ("gguf bits=bf16", ("centred", "hadamard", "float32", None)),
    ],
)
def test_what_is_given_stays(words: str, expected: tuple[Any, ...]) -> None:
    """The command line wins over the target, the target over the method's file. Learned scales are
    one fp32 number, which every file holds; and a run without quantization has no use for it."""
    assert settings(f"quant.target={words}") == expected


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        *((f"{t} bits=w4a4", ("bits=w4a4", "bits=w4a16", "onnx")) for t in WEIGHT_FILES),
        *((f"{t} bits=w16a4", ("no quantized activations",)) for t in WEIGHT_FILES),
        *((f"{t} bits=w4s24a16", ("2:4", "bits=w4a16", "onnx")) for t in WEIGHT_FILES),
        *(
            (f"{t} bits=w4a16 quant.rotation=hadamard", ("no rotation", "quant.rotation=none"))
            for t in WEIGHT_FILES
        ),
        ("gguf bits=w4a16 quant.weight_rotation=hadamard-back", ("llama.cpp", "hadamard-back")),
        ("gguf bits=w4a16 quant.scale_dtype=float32", ("float16", "float32 would be rounded")),
        ("gguf bits=w4a16 quant.scale_dtype=bfloat16", ("quant.scale_dtype=float16",)),
        ("gguf bits=w8a16 quant.grid=centred", ("±255", "quant.grid=int", "w7a16")),
        ("compressed-tensors bits=w8a16 quant.grid=centred", ("±255", "quant.grid=int")),
        ("gguf bits=w4a16 quant.group_size=16", ("32 to any larger", "group_size=16")),
        ("mlx bits=w4a16 quant.group_size=256", ("32 to 128", "group_size=256", "null")),
        ("onnx bits=w4a4 quant.group_size=32", ("w4a4", "one scale a row", "w4a16")),
        ("gguf bits=w4a16 model.intermediate_size=80", ("intermediate_size=80", "of 32", "64")),
    ],
)
def test_what_contradicts_is_refused(words: str, parts: tuple[str, ...]) -> None:
    """Target, setting, reason and what to choose instead."""
    message = refusal(f"quant.target={words}")
    for part in (f"quant.target={words.split()[0]}", *parts):
        assert part in message


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("target", BY_NAME)
def test_a_method_that_a_target_has_settled_is_valid(target: str, method: str) -> None:
    """In Python, too; and settling it again changes nothing."""
    for bits in map(parse_bits, WEIGHTS):
        quant = targeted(replace(method_config(method), target=target), bits)
        validate_quant(quant, bits)
        assert targeted(quant, bits) == quant


def test_a_layer_refuses_what_its_target_does_not_hold() -> None:
    with pytest.raises(UserError, match=r"quant\.target=gguf: llama\.cpp computes no rotation"):
        validate_quant(QuantConfig(target="gguf"), parse_bits("w4a16"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("quant.group_size=48", ("power of two", "64")),
        ("quant.group_size=8", ("at least 16",)),
        ("quant.group_size=256", ("hidden_size=128", "16, 32, 64, 128, null")),
        ("quant.scale_dtype=fp16", ("float32, float16, bfloat16", "Did you mean 'float16'")),
        ("quant.target=ggml", ("gguf, onnx, mlx, compressed-tensors",)),
        ("method=lsq quant.group_size=32", ("learned-step", "method=quest")),
        ("method=pact quant.scale_dtype=float16", ("learned-clip", "method=quest")),
        ("bits=w16a4 quant.group_size=32", ("w16a4", "quantized weights")),
        ("bits=w16a4 quant.scale_dtype=float16", ("w16a4", "quantized weights")),
    ],
)
def test_scales_that_cannot_be(
    words: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, exit code 2."""
    assert main(["train", "model=nano", "data=stdlib", *words.split(), "--cfg", "job"]) == 2
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    for part in parts:
        assert part in message


def test_names_tell_such_runs_apart() -> None:
    words = ("", "quant.scale_dtype=float16", "quant.group_size=32", "quant.group_size=64")
    names = {configured(f"bits=w4a16 {each}").name for each in (*words, "quant.target=gguf")}
    assert len(names) == 5
    assert any(name is not None and name.endswith("-targetgguf") for name in names)


def test_a_settled_config_is_read_back_as_it_is() -> None:
    """A run's config.yaml holds what the target set, as plain values."""
    from questtrain.config.loading import config_from_mapping

    config = configured("bits=w4a16 quant.target=gguf")
    assert config_from_mapping(TrainConfig, asdict(config)) == config
