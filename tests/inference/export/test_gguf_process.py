"""GGUF: a file through the commands, with llama.cpp in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.inference.export import written
from questtrain.inference.export.format import Options
from questtrain.inference.export.source import Source
from questtrain.inference.export.write import export
from tests.inference.export.conftest import Trained, answer_here

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


def test_export_and_verify(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Certified when it is written, and again later (in this process, a start of Python less)."""
    run, output = trained("w4a16"), tmp_path / "export"
    assert main(["export", f"run={run}", "format=gguf", f"output={output}"]) == 0
    shown = capsys.readouterr().out
    assert "llama.cpp (xllamacpp " in shown
    assert "token ids" in shown
    monkeypatch.setattr(written, "ask", answer_here)
    assert main(["verify", str(output), f"run={run}", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["runtime"] == "llama.cpp"
    assert again["comparison"]["largest_logit_difference"] < 2e-5
    assert again["texts_compared"]


def test_a_gpu_is_no_place_to_compare(trained: Trained, tmp_path: Path) -> None:
    """llama.cpp is asked on a CPU: its certificate says no other device."""
    for runtime, name in (("llama.cpp", "gguf"), ("llama.cpp-f32", "gguf-packed")):
        with pytest.raises(UserError, match=f"{runtime} on a CPU alone"):
            export(
                Source.open(trained("w4a16")),
                name,
                tmp_path / "out",
                Options(),
                runtime,
                device="cuda:0",
            )
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_not_run(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from questtrain.inference.export.llama_cpp import LlamaCpp

    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(RuntimeError, match=r"llama\.cpp does not load model\.gguf"):
        LlamaCpp(file, 64)


def test_a_text_ends_where_a_document_does(trained: Trained, tmp_path: Path) -> None:
    """BOS begins prompts and ends texts, as `questtrain generate` has it; ids that only pad the
    embedding are never made of text."""
    from gguf import GGUFReader

    from questtrain.inference.export.gguf import GgufFormat
    from questtrain.inference.export.gguf_tokenizer import CONTROL, UNUSED

    source = Source.open(trained("bf16"))
    GgufFormat().write(source, tmp_path, Options())
    fields = GGUFReader(tmp_path / "model.gguf").fields
    keys = ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "pre")
    bos = source.tokenizer.bos_id
    found = [fields[f"tokenizer.ggml.{key}"].contents() for key in keys]
    assert found == [bos, bos, True, False, "gpt-2"]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert len(kinds) == source.config.model.vocab_size
    assert kinds[bos] == CONTROL
    assert all(kind == UNUSED for kind in kinds[source.tokenizer.vocab_size :])
