"""format=compressed-tensors and format=mlx: certified in transformers and mlx-lm, or refused with
the reason; each run's integers and their words as those libraries read them."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.inference.export import write, written
from questtrain.inference.export.compressed_tensors import CompressedTensorsFormat
from questtrain.inference.export.format import PLAIN, Options
from questtrain.inference.export.integers import integers
from questtrain.inference.export.mlx import MlxFormat
from questtrain.inference.export.passages import prompts
from questtrain.inference.export.source import Source
from tests.inference.export.conftest import FAMILY, MATRIX, answer_here, in_format

FORMS = {"compressed-tensors": CompressedTensorsFormat, "mlx": MlxFormat}

# Beside the matrix: (bits, settings) → what each format says; None: certified.
OTHERS = [
    ("w3a16", {"quant.grid": "int"}, None, None),
    ("w8a16", {"quant.grid": "int"}, None, None),
    ("w8a16", {}, "odd integers up to ±255", None),
    ("w5a16", {"quant.skip": ["lm_head", "layers.0.mlp.down_proj"]}, None, None),
    ("wfp4a16", {}, None, None),
    ("w6a16", {"quant.group_size": 64, "quant.scale_dtype": "float16"}, None, None),
    ("w4a16", {"quant.group_size": 16}, None, "the least group of MLX is 32"),
    ("w4s24a16", {}, None, None),
    ("w8s24a16", {}, "odd integers up to ±255", "has 511 values"),
    ("w16a4", {}, "quantizes activations (layers.0", "quantizes activations (layers.0"),
]


@pytest.fixture
def here(monkeypatch):
    """The runtime in this process, and on some of the passages."""

    def ask(*words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return answer_here(*words)

    monkeypatch.setattr(written, "ask", ask)
    monkeypatch.setattr(written, "prompts", lambda *words: prompts(*words)[:3])


def exported(run, name, place, **options):
    return write.export(Source.open(run), name, place / name, Options(**options))


def check(run, name, refusal, place):
    if refusal is None:
        certificate = exported(run, name, place)
        assert certificate.codes_different == 0
        assert certificate.comparison.largest_logit_difference < 1e-5
        assert certificate.comparison.argmax_agreement == 1
    else:
        with pytest.raises(UserError) as error:
            exported(run, name, place)
        assert refusal in str(error.value)
        assert not (place / name).exists()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("bits", "method"), MATRIX)
def test_the_matrix(name, bits, method, trained, tmp_path, here):
    refusal = None
    if bits == "bf16":
        refusal = "format=hf is the folder" if name == "compressed-tensors" else None
    elif not bits.endswith("a16"):
        refusal = "format=packed, format=onnx and format=hf hold that"
    elif method == "quest":
        refusal = "layers.0.attention.q_proj are of a rotated weight"
    check(trained(bits, method), name, refusal, tmp_path)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("bits", "settings", "compressed", "mlx"), OTHERS)
def test_others(name, bits, settings, compressed, mlx, trained, tmp_path, here):
    run = in_format(trained("w4a16", "quest-noht"), tmp_path / "run", bits, settings)
    check(run, name, compressed if name == "compressed-tensors" else mlx, tmp_path)


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_learned_scales(method, trained, tmp_path, here):
    for name in FORMS:
        check(trained("w3a16", method), name, None, tmp_path)


def test_the_llama_family(trained, tmp_path, here):
    """With norms of Q and K a Qwen3."""
    run = trained("w4a16", "quest-noht", **FAMILY, **{"model.qk_norm": "true"})
    for name in FORMS:
        check(run, name, None, tmp_path)


def test_a_qwen2_is_given_the_tokenizer_of_qwen(trained, tmp_path, here):
    """By AutoTokenizer, which mlx-lm knows alone: such ids are found."""
    run = trained("w4a16", "quest-noht", **FAMILY, **{"model.qkv_bias": "true"})
    check(run, "compressed-tensors", None, tmp_path)
    assert "PreTrainedTokenizerFast" in (tmp_path / "compressed-tensors/README.md").read_text()
    check(run, "mlx", "model.head_dim=32: mlx-lm's model", tmp_path)
    run = trained("w4a16", "quest-noht", **{"model.qkv_bias": "true"})
    with pytest.raises(written.CertificateFailed, match="mlx-lm encodes text otherwise"):
        exported(run, "mlx", tmp_path)
    assert not (tmp_path / "mlx").exists()


def test_a_model_of_no_class_of_transformers(trained, tmp_path, here):
    both = {"model.qkv_bias": "true", "model.qk_norm": "true"}
    for name in FORMS:
        check(trained("w4a16", "quest-noht", **both), name, "has both", tmp_path)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", FORMS)
def test_sixteen_bits(name, dtype, trained, tmp_path, here, monkeypatch):
    """Scales are rounded, too: the codes are not. One prompt: MLX's CPU has no such numbers. After
    so few steps the likeliest tokens are near ties, which the differences of the logits bound."""
    monkeypatch.setattr(written, "prompts", lambda *words: [prompts(*words)[0][:48]])
    monkeypatch.setitem(PLAIN, dtype, replace(PLAIN[dtype], argmax=0.75))
    certificate = exported(trained("w4a16", "quest-noht"), name, tmp_path, dtype=dtype)
    assert certificate.codes_different == 0
    assert certificate.comparison.largest_logit_difference > 0
    assert any(f"rounded to {dtype}" in limit for limit in certificate.not_expressed)


def test_a_bias_in_bf16_is_too_coarse_for_8_bits(trained, tmp_path):
    run = in_format(trained("w4a16", "quest-noht"), tmp_path / "run", "w8a16", {})
    with pytest.raises(UserError, match="too coarse for 8 bits: choose dtype=f16"):
        exported(run, "mlx", tmp_path, dtype="bf16")


@pytest.mark.parametrize("name", FORMS)
def test_in_a_process_of_its_own(name, trained, tmp_path, capsys):
    """The whole way, by the command line; in parts, as folders above 5 GB are."""
    run, place = trained("w1.58a16", "quest-noht"), tmp_path / "export"
    words = [f"run={run}", f"format={name}", f"output={place}", "device=cpu"]
    assert main(["export", *words]) == 0
    assert re.search(r" 0 of [\d,]+ differ", capsys.readouterr().out)
    assert {"README.md", "certificate.json", "config.json", "tokenizer.json"} < {
        path.name for path in place.iterdir()
    }


def test_parts(trained, tmp_path, here):
    for name in FORMS:
        exported(trained("w2a16", "quest-noht"), name, tmp_path, shard_bytes=200_000)
        assert len(list((tmp_path / name).glob("model-*.safetensors"))) > 3


@pytest.mark.parametrize("bits", ["w1a16", "w3a16", "w4s24a16", "wfp4a16", "w1.58a16"])
def test_integers_times_units_are_the_values(bits, trained, tmp_path):
    run = in_format(trained("w4a16", "quest-noht"), tmp_path / "run", bits, {})
    codes = Source.open(run).codes("layers.0.mlp.up_proj")
    whole, units = integers(codes)
    assert torch.equal(whole * units, codes.values())


@pytest.mark.parametrize("bits", ["w1a16", "w2a16", "w3a16", "w4a16", "w5a16", "w6a16", "w7a16"])
def test_words_are_those_of_mlx(bits, trained, tmp_path):
    """mx.dequantize gives the weight; mx.quantize of it, asked for the same numbers, its words."""
    import mlx.core as mx

    run = in_format(trained("w4a16", "quest-noht"), tmp_path / "run", bits, {})
    (tmp_path / "export").mkdir()
    MlxFormat().write(Source.open(run), tmp_path / "export", Options())
    settings = json.loads((tmp_path / "export" / "config.json").read_text())["quantization"]
    parts = mx.load(str(tmp_path / "export" / "model.safetensors"))
    name = "model.layers.1.mlp.down_proj"
    found = mx.dequantize(
        *(parts[f"{name}.{part}"] for part in ("weight", "scales", "biases")), **settings
    )
    wanted = Source.open(run).folded("layers.1.mlp.down_proj")
    assert torch.allclose(torch.tensor(found.tolist()), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bits", ["w3a16", "w4a16"])
def test_words_are_those_of_compressed_tensors(bits, trained, tmp_path):
    """Its own packing of the same integers."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    run = in_format(trained("w4a16", "quest-noht"), tmp_path / "run", bits, {})
    (tmp_path / "export").mkdir()
    CompressedTensorsFormat().write(Source.open(run), tmp_path / "export", Options())
    parts = load_file(tmp_path / "export" / "model.safetensors")
    whole, _ = integers(Source.open(run).codes("layers.1.mlp.down_proj"))
    size = {"w3a16": 4, "w4a16": 8}[bits]
    words = pack_to_int32(whole.to(torch.int8), size)
    assert torch.equal(words, parts["model.layers.1.mlp.down_proj.weight_packed"])
