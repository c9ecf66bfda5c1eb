"""GGUF: what llama.cpp computes of runs of every kind, and why it is refused others."""

from __future__ import annotations

from pathlib import Path

import pytest

from questtrain.errors import UserError
from questtrain.inference.export import export_format, gguf_file
from questtrain.inference.export.certificate import Certificate
from questtrain.inference.export.format import Options
from questtrain.inference.export.source import Source
from questtrain.inference.export.write import export
from questtrain.inference.export.written import CertificateFailed, Written
from tests.inference.export.conftest import MATRIX, Trained

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("in_this_process")  # in its own: test_gguf_process.py


def exported(run: Path, name: str, output: Path, **options: object) -> Certificate:
    certificate = export(Source.open(run), name, output, Options(**options))  # type: ignore[arg-type]
    assert certificate is not None
    assert certificate.codes_different == 0
    return certificate


def refused(run: Path, name: str, output: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        export(Source.open(run), name, output, Options(**options))  # type: ignore[arg-type]
    assert not output.exists()
    return str(caught.value)


@pytest.mark.parametrize(("bits", "method"), MATRIX)
def test_dense_files_are_exact(trained: Trained, bits: str, method: str, tmp_path: Path) -> None:
    """Last bits of fp32 sums are all that llama.cpp may do otherwise."""
    run = trained(bits, method)
    if not bits.endswith("a16") and bits != "bf16":
        assert "quantizes activations" in refused(run, "gguf", tmp_path / "export")
        return
    certificate = exported(run, "gguf", tmp_path / "export")
    assert certificate.texts_compared
    assert certificate.comparison is not None
    assert certificate.comparison.largest_logit_difference < 2e-5
    assert certificate.comparison.argmax_agreement == 1


@pytest.mark.parametrize(("bits", "method"), MATRIX)
def test_packed_files_hold_the_codes(
    trained: Trained, bits: str, method: str, tmp_path: Path
) -> None:
    """llama.cpp's own 8-bit activations are what differs."""
    run = trained(bits, method)
    if not bits.endswith("a16"):
        reason = refused(run, "gguf-packed", tmp_path / "export")
        assert ("quantizes activations" if bits != "bf16" else "has no codes") in reason
    elif method == "quest":
        assert "Hadamard" in refused(run, "gguf-packed", tmp_path / "export")
    else:
        certificate = exported(run, "gguf-packed", tmp_path / "export")
        assert certificate.comparison is not None
        assert certificate.comparison.median_logit_difference < 5e-3
        # A run of three steps repeats the weights' dense bytes in embedding and head alone.
        assert (tmp_path / "export" / "model.gguf").stat().st_size < 4 * certificate.weights


SHAPES = {
    "grouped query attention, tied, a head width of its own": {
        "model.num_kv_heads": 1,
        "model.tie_embeddings": True,
        "model.head_dim": 64,
    },
    "Qwen 2": {"model.qkv_bias": True},
    "Qwen 3": {"model.qk_norm": True, "model.num_kv_heads": 1},
    "Llama 3's frequencies": {
        "model.rope_scaling.rope_type": "llama3",
        "model.rope_scaling.factor": 4,
        "model.rope_scaling.original_max_position_embeddings": 32,
    },
    "linear frequencies": {
        "model.rope_scaling.rope_type": "linear",
        "model.rope_scaling.factor": 4,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_llamas_family(trained: Trained, shape: str, tmp_path: Path) -> None:
    run = trained("w4a16", "quest", **SHAPES[shape])
    certificate = exported(run, "gguf", tmp_path / "export")
    assert certificate.comparison is not None
    assert certificate.comparison.largest_logit_difference < 2e-5


def test_what_no_architecture_has(trained: Trained, tmp_path: Path) -> None:
    run = trained("bf16", "quest", **{"model.qkv_bias": True, "model.qk_norm": True})
    assert "one or the other" in refused(run, "gguf", tmp_path / "export")


NOT_ROTATED = {"quant.rotation": "none"}
LAST_SKIPPED = {"quant.skip": "[lm_head,layers.1.*]"}
ROTATED_ONLINE = {"quant.activation_rotation": "hadamard", "quant.weight_rotation": "hadamard"}
OTHERS: list[tuple[str, str, dict[str, object]]] = [
    ("gguf", "w4a16", ROTATED_ONLINE),
    ("gguf", "w4s24a16", LAST_SKIPPED),
    ("gguf-packed", "wfp4a16", NOT_ROTATED),
    ("gguf-packed", "w4s24a16", {**NOT_ROTATED, **LAST_SKIPPED}),
    ("gguf-packed", "w3a16", {**NOT_ROTATED, "quant.grid": "int"}),
    ("gguf-packed", "w1.58a16", {**NOT_ROTATED, "model.hidden_size": 192}),
]


@pytest.mark.parametrize(("name", "bits", "settings"), OTHERS)
def test_other_methods(
    trained: Trained, name: str, bits: str, settings: dict[str, object], tmp_path: Path
) -> None:
    exported(trained(bits, "quest", **settings), name, tmp_path / "export")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_numbers_of_16_bits(trained: Trained, dtype: str, tmp_path: Path) -> None:
    certificate = exported(trained("w4a16"), "gguf", tmp_path / "export", dtype=dtype)
    assert certificate.comparison is not None
    assert certificate.comparison.largest_logit_difference > 1e-6
    assert any(dtype.upper() in limit for limit in certificate.not_expressed)


def test_one_scale_a_tensor_is_exact(trained: Trained, tmp_path: Path) -> None:
    certificate = exported(trained("w4a16", "lsq"), "gguf-packed", tmp_path / "export")
    assert not any("fp16 number" in limit for limit in certificate.not_expressed)
    assert any("a scale a tensor" in limit for limit in certificate.not_expressed)


def test_trained_for_gguf_loses_nothing(trained: Trained, tmp_path: Path) -> None:
    run = trained("w2a16", "quest", **{"quant.target": "gguf", "quant.group_size": 32})
    certificate = exported(run, "gguf-packed", tmp_path / "export")
    assert not any("fp16 number" in limit for limit in certificate.not_expressed)


def test_units_under_fp16s_normal_numbers(trained: Trained, tmp_path: Path) -> None:
    """A power of two lifts them: no digits are lost."""
    run = trained("w4a16", "quest-noht", **{"model.init_std": 1e-5})
    certificate = exported(run, "gguf-packed", tmp_path / "export")
    rounding, scales, *_ = certificate.not_expressed[1:]
    assert float(rounding.split(" differ by ")[1].split()[0]) < 5e-4
    assert "a scale a tensor" in scales


def test_eight_centred_bits_have_no_type(trained: Trained, tmp_path: Path) -> None:
    run = trained("w8a16", "quest-noht")
    assert "no block format" in refused(run, "gguf-packed", tmp_path / "export")


def test_transformers_reads_the_file(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source, output = Source.open(trained("w4a16")), tmp_path / "export"
    certificate = export(source, "gguf", output, Options(), "transformers")
    assert certificate is not None
    assert certificate.texts_compared
    assert certificate.comparison is not None
    assert certificate.comparison.largest_logit_difference < 2e-5


def test_the_weights_part_of_a_packed_files_error(trained: Trained, tmp_path: Path) -> None:
    """llama.cpp with the values of the blocks, and no activation in 8 bits."""
    run, runtime = Source.open(trained("w2a16", "quest-noht")), "llama.cpp-f32"
    certificate = export(run, "gguf-packed", tmp_path / "export", Options(), runtime)
    assert certificate is not None
    assert certificate.comparison is not None
    assert certificate.comparison.largest_logit_difference < 1e-3


@pytest.mark.parametrize(
    ("name", "method", "runtime"),
    [("gguf", "quest", "llama.cpp"), ("gguf-packed", "quest-noht", "llama.cpp-f32")],
)
def test_a_file_in_another_order_fails(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    runtime: str,
) -> None:
    """Q and K as they are: text looks sane, the codes are right, the logits are not."""
    source, form = Source.open(trained("w4a16", method)), export_format(name)
    monkeypatch.setattr(gguf_file, "is_reordered", lambda kind, name: False)
    form.write(source, tmp_path, Options())
    with pytest.raises(CertificateFailed, match=r"does not compute .* layers\.0"):
        Written(form, source, tmp_path, Options(), runtime).certify()
