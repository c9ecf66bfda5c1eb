"""format=onnx: every run in onnxruntime, and some in OpenVINO."""

import re
from pathlib import Path

import onnx
import pytest
import torch
from tokenizers import Tokenizer

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.inference.export import passages
from questtrain.inference.export.certificate import read_certificate
from questtrain.inference.export.format import Options
from questtrain.inference.export.onnx_graph import MODEL, OPSET, Graph
from questtrain.inference.export.onnx_rows import RowQuantizers
from questtrain.inference.export.onnx_run import OnnxModel
from questtrain.inference.export.source import Source
from questtrain.inference.export.write import export
from questtrain.inference.export.written import CertificateFailed
from questtrain.inference.generate import generate_tokens
from questtrain.inference.load import load_run
from tests.inference.export.conftest import MATRIX

IN_OPENVINO = (("w2a16", "quest"), ("w4a4", "quest"))
FAMILY = {
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 32,
    "model.tie_embeddings": "true",
    "model.qk_norm": "true",
    "model.qkv_bias": "true",
    "model.rope_scaling": "{rope_type: llama3, factor: 4, original_max_position_embeddings: 16}",
}


@pytest.fixture
def here(in_this_process, monkeypatch):
    """The runtime in this process, and fewer prompts."""
    monkeypatch.setattr(
        passages, "PASSAGES", (passages.PASSAGES[1][:150], passages.PASSAGES[3][:60])
    )


@pytest.mark.parametrize(
    ("bits", "method", "runtime"),
    [(*case, "onnxruntime") for case in MATRIX] + [(*case, "openvino") for case in IN_OPENVINO],
)
def test_every_run_is_certified(trained, here, bits, method, runtime, tmp_path):
    """With fp32 activations to the rounding of fp32; else the certificate's own bound decides, and
    a code that differs is a failure always."""
    source = Source.open(trained(bits, method))
    certificate = export(source, "onnx", tmp_path / "out", Options(), runtime)
    found = certificate.comparison
    assert certificate.codes_different == 0
    assert abs(found.perplexity_exported / found.perplexity_trained - 1) < 1e-2
    if not source.bits.activation.quantized:
        assert found.largest_logit_difference < 1e-5
        assert found.argmax_agreement == 1


@pytest.mark.parametrize(("bits", "runtime"), [("w4a16", "onnxruntime"), ("w1.58a16", "openvino")])
def test_codes_of_weights_alone(trained, here, bits, runtime, tmp_path):
    """A weight in its bits, to the same rounding."""
    source = Source.open(trained(bits, "quest"))
    certificate = export(source, "onnx-packed", tmp_path / "out", Options(), runtime)
    assert certificate.codes_different == 0
    assert certificate.comparison.largest_logit_difference < 1e-5
    export(source, "onnx", tmp_path / "values", Options(), verify=False)
    codes, values = (
        (tmp_path / name / "model.onnx_data").stat().st_size for name in ("out", "values")
    )
    assert codes < values / 3


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_the_whole_family(trained, here, bits, tmp_path):
    """Shared heads of keys, tied embeddings, biases, norms of Q and K, scaled positions."""
    source = Source.open(trained(bits, "quest", **FAMILY))
    certificate = export(source, "onnx", tmp_path / "out", Options())
    assert certificate.codes_different == 0
    if bits == "bf16":
        assert certificate.comparison.largest_logit_difference < 1e-5


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A weight-only run, and what the command writes of it, certified by onnxruntime in a process
    of its own."""
    run, folder = trained("w2a16", "quest"), tmp_path_factory.mktemp("onnx") / "out"
    assert main(["export", f"run={run}", "format=onnx", f"output={folder}"]) == 0
    return run, folder


def test_the_command_and_openvino_afterwards(exported, here, capsys):
    run, folder = exported
    certificate = read_certificate(folder)
    assert certificate.runtime == "onnxruntime"
    assert main(["verify", str(folder), f"run={run}", "runtime=openvino"]) == 0
    assert "openvino" in capsys.readouterr().out


def test_the_cache_gives_the_full_forward_and_what_questtrain_generates(exported):
    """Greedy, token by token."""
    run, folder = exported
    trained_model, model = load_run(run, "cpu"), OnnxModel(folder, "onnxruntime")
    prompt = [trained_model.tokenizer.bos_id, *trained_model.tokenizer.encode("def value(self")]
    expected = list(generate_tokens(trained_model, prompt, 12, temperature=0, top_p=1, seed=0))
    logits, cache = model(torch.tensor([prompt]))
    seen = list(prompt)
    for token in expected:
        assert int(logits[0, -1].argmax()) == token
        seen.append(token)
        logits, cache = model(torch.tensor([[token]]), cache)
        whole, _ = model(torch.tensor([seen]))
        torch.testing.assert_close(logits[0, -1], whole[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_padding_on_the_left_changes_nothing(exported, runtime):
    """A batch of two prompts of different lengths, as text generation pads them."""
    model = OnnxModel(exported[1], runtime)
    short, long = torch.tensor([[0, 7, 9]]), torch.tensor([[0, 5, 6, 7, 8, 9]])
    batch = torch.cat((torch.nn.functional.pad(short, (3, 0)), long))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    logits, _ = model(batch, mask=mask)
    assert logits.isfinite().all()
    for row, tokens in enumerate((short, long)):
        alone, _ = model(tokens)
        kept = logits[row : row + 1, -tokens.shape[1] :]
        torch.testing.assert_close(kept, alone, rtol=1e-4, atol=1e-5)


def test_the_graph_is_checked_and_named_as_text_generation_names_it(exported):
    """Standard operators alone, shapes known throughout."""
    onnx.checker.check_model(exported[1] / MODEL, full_check=True)
    model = onnx.load(exported[1] / MODEL, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    pasts = [f"past_key_values.{n}.{what}" for n in range(2) for what in ("key", "value")]
    inputs = [entry.name for entry in model.graph.input]
    assert inputs == ["input_ids", "attention_mask", "position_ids", *pasts]
    outputs = [entry.name for entry in model.graph.output]
    assert outputs == ["logits", *(name.replace("past_key_values", "present") for name in pasts)]
    inferred = {entry.name for entry in model.graph.value_info}
    made = {name for node in model.graph.node for name in node.output} - set(outputs)
    assert made <= inferred


def test_the_tokenizer_beside_it_begins_with_bos(exported):
    run, folder = exported
    ours = load_run(run, "cpu").tokenizer
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("def f(x):").ids
    assert ids == [ours.bos_id, *ours.encode("def f(x):")]


def test_a_graph_that_computes_something_else_is_no_export(trained, here, monkeypatch, tmp_path):
    """A scale that is wrong by a hundredth: the certificate fails, and nothing stays."""
    scale = RowQuantizers._row_scale
    monkeypatch.setattr(RowQuantizers, "_row_scale", lambda self, x, a: scale(self, x, 1.01 * a))
    source = Source.open(trained("w4a4", "quest"))
    with pytest.raises(CertificateFailed, match=r"first block, layers\.0, differs"):
        export(source, "onnx", tmp_path / "out", Options())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bits", "words", "message"),
    [
        ("bf16", ["format=onnx-packed"], "bits=bf16 has no layer"),
        ("w4a4", ["format=onnx-packed"], "format=onnx holds it"),
        ("w4a4", ["format=onnx-paked"], "Did you mean 'onnx-packed'"),
        ("w4a4", ["format=onnx", "runtime=onnxrutime"], "Did you mean 'onnxruntime'"),
    ],
)
def test_bad_input(trained, capsys, tmp_path, bits, words, message):
    run, folder = trained(bits, "quest"), tmp_path / "out"
    assert main(["export", f"run={run}", f"output={folder}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_a_gpu_is_no_place_to_compare(trained, tmp_path):
    with pytest.raises(UserError, match="onnxruntime on a CPU alone"):
        export(Source.open(trained("bf16")), "onnx", tmp_path / "out", Options(), device="cuda:0")


def test_no_more_than_a_layer_is_in_memory(trained, monkeypatch, tmp_path):
    """Whenever a tensor is written, those before it have gone."""
    import weakref

    alive = []
    tensor = Graph.tensor

    def watched(self, name, value):
        assert sum(each() is not None for each in alive) <= 4  # of one layer
        alive.append(weakref.ref(value))
        return tensor(self, name, value)

    monkeypatch.setattr(Graph, "tensor", watched)
    export(Source.open(trained("w4a4", "quest")), "onnx", tmp_path / "out", Options(), verify=False)
    assert len(alive) > 50


def test_the_page_s_ten_lines(exported, tmp_path):
    """The snippet of docs/export-onnx.md runs as it stands."""
    page = Path(__file__).parents[3] / "docs" / "export-onnx.md"
    snippet = re.search("```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert snippet is not None
    code = snippet.group(1).replace("exports/first", str(exported[1]))
    scope: dict[str, object] = {}
    exec(compile(code, "export-onnx.md", "exec"), scope)
    assert scope["text"].startswith("def ")
    with pytest.raises(UserError):
        load_run(exported[1], "cpu")
