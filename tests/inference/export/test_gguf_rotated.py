"""Rotated codes in GGUF: certified by what the file holds, refused by what ignores its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.inference.export.source import Source
from tests.inference.export.conftest import Trained

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


def test_codes_and_keys(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock llama.cpp refuses the file; the keys name every tensor of codes."""
    from gguf import GGUFReader

    from questtrain.inference.export.llama_cpp import LlamaCpp

    run, output = trained("w2a16"), tmp_path / "export"
    words = ["export", f"run={run}", "format=gguf-rotated", f"output={output}"]
    assert main(words) == 2
    assert "experimental=true" in capsys.readouterr().err
    assert main([*words, "experimental=true"]) == 0
    assert "its weights alone were compared" in capsys.readouterr().out
    certificate = json.loads((output / "certificate.json").read_text())
    assert certificate["codes_different"] == 0
    assert certificate["comparison"] is certificate["runtime"] is None
    assert "No program was run" in certificate["not_expressed"][0]
    assert main(["verify", str(output), f"run={run}"]) == 0

    file = output / "model.gguf"
    with pytest.raises(RuntimeError, match="unknown model architecture: 'questtrain-hadamard'"):
        LlamaCpp(file, 64)
    fields = GGUFReader(file).fields
    assert fields["prism.hadamard.block_size"].contents() == 128
    names = fields["prism.hadamard.weight_names"].contents()
    assert len(names) == len(Source.open(run).linear_names()) == 14
    assert "blk.1.ffn_down.weight" in names


@pytest.mark.parametrize(
    ("bits", "method", "settings", "reason"),
    [
        ("w2a16", "quest-noht", {}, "format=gguf-packed holds its codes"),
        ("w4a4", "quest", {}, "quantizes activations"),
        ("bf16", "quest", {}, "has no codes"),
        ("w2a16", "quest", {"model.hidden_size": 192}, "in blocks of 64 and"),
    ],
)
def test_what_it_cannot_hold(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bits: str,
    method: str,
    settings: dict[str, object],
    reason: str,
) -> None:
    run = trained(bits, method, **settings)
    words = ["export", f"run={run}", "format=gguf-rotated", f"output={tmp_path / 'export'}"]
    assert main([*words, "experimental=true"]) == 2
    assert reason in capsys.readouterr().err
