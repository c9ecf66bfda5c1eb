"""A layer as ONNX operators gives what the trained layer gives."""

from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch

from questtrain.inference.export.onnx_graph import DATA, EXTERNAL_BYTES, MODEL, Graph, read_tensor
from questtrain.inference.export.onnx_linear import PAIR_LIMIT, LinearWriter, stored_values
from questtrain.inference.export.source import weight_codes
from questtrain.quant import QuantLinear
from questtrain.quant.method import method_config

VALUES = (
    "bf16",
    "w4a16",
    "w16a4",
    "w8s24a8",
    "wfp4a16",
    "w16a4 rotated",
    "w4a4 groups",
    "w4a4 back",
    "bf16 rotated",
)
INTEGERS = (
    "w4a4",
    "w1a1",
    "w1.58a1.58",
    "w2a2",
    "w3a8",
    "w8a4",
    "w7a7",
    "w8a8",
    "fp4",
    "wfp4a8",
    "w4s24a4",
    "w8a8 int",
    "w3a3 int",
    "w4a4 lsq",
    "w2a2 pact",
    "w4a4 lsq-plus",
    "w8a8 lsq-plus",
    "w4a4 quest-noht",
)
CODES = (
    "w4a16",
    "w3a16",
    "w2a16",
    "w1.58a16",
    "w1a16",
    "w4a16 int",
    "w4a16 quest-noht",
    "w4a16 lsq",
    "w4a16 groups",
    "w4a16 rotated",
)
SETTINGS = {
    "int": {"grid": "int"},
    "groups": {"group_size": 32},
    "rotated": {"weight_rotation": "hadamard", "activation_rotation": "hadamard"},
    "back": {"weight_rotation": "hadamard-back", "activation_rotation": "hadamard-back"},
}
WIDTH, OUTPUTS, ROWS = 192, 40, 50


def trained_layer(words):
    """A layer with a bias, whose learned scales have started; ``words``: bits, and a method or a
    key of SETTINGS. And rows ``[2, ROWS, WIDTH]``, one of them zero."""
    bits, *others = words.split()
    settings = SETTINGS.get(others[0]) if others else {}
    quant = method_config(others[0] if settings is None else "quest")
    for key, value in (settings or {}).items():
        setattr(quant, key, value)
    torch.manual_seed(0)
    layer = QuantLinear(WIDTH, OUTPUTS, bias=True, bits=bits, method=quant)
    x = torch.randn(2, ROWS, WIDTH) + 0.1
    x[0, 3] = 0
    layer(x)
    return layer.eval().requires_grad_(False), x


def write_layer(layer, folder, dtype=torch.float32, packs=False):
    """The layer alone as a model."""
    graph = Graph(folder)
    x = graph.input("x", torch.float32, ("batch_size", "sequence_length", WIDTH))
    writer = LinearWriter(graph, SimpleNamespace(linear=lambda name: layer), dtype, packs)
    graph.output("y", writer("layer", x), ("batch_size", "sequence_length", OUTPUTS))
    graph.save("layer", {})
    return onnx.load(folder / MODEL, load_external_data=False)


def product_of(model):
    """The operator that multiplies the layer's weight."""
    return next(
        node.op_type
        for node in model.graph.node
        if any(name in ("layer.weight", "layer.codes") for name in node.input)
    )


@pytest.mark.parametrize(
    ("words", "packs", "product"),
    [(words, False, "MatMul") for words in VALUES]
    + [(words, False, "MatMulInteger") for words in INTEGERS]
    + [(words, True, "MatMulNBits") for words in CODES],
)
def test_a_layer(words, packs, product, tmp_path):
    """To the rounding of fp32, but for rows in which a code lies on a border: a few in a hundred at
    the most. The codes are the layer's own."""
    layer, x = trained_layer(words)
    model = write_layer(layer, tmp_path, packs=packs)
    assert product_of(model) == product
    session = onnxruntime.InferenceSession(tmp_path / MODEL, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    expected = layer(x)
    wrong = ((found - expected).abs() > 1e-5 * expected.abs().max()).any(-1)
    assert wrong.double().mean() < 0.05
    values, folded = stored_values(tmp_path, model, "layer")
    codes = weight_codes(layer)
    if codes is None:
        assert torch.equal(values, layer.weight)
    else:
        assert codes.different(values, folded) == 0
        expected = codes.folded() if folded else codes.values()
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("words", INTEGERS)
def test_no_sum_of_two_bytes_saturates(words, tmp_path):
    """x86 without VNNI adds pairs of unsigned times signed bytes in 16 bits: what may go beyond is
    two unsigned bytes."""
    layer, _ = trained_layer(words)
    model = write_layer(layer, tmp_path)
    codes = read_tensor(model, tmp_path, "layer.codes")
    grid = layer.activation_quantizer.grid
    levels = 25 if words.startswith("fp4") else grid.levels
    largest = levels - 1 if levels > 128 or words.startswith("fp4") else 2 * (levels - 1)
    may_saturate = 2 * largest * int(codes.int().abs().max()) > PAIR_LIMIT
    assert codes.dtype == torch.uint8 or not may_saturate


def test_large_tensors_lie_beside_the_model(tmp_path):
    """Aligned, each once, and nothing of them in the model's own file."""
    layer, _ = trained_layer("w8a8")
    model = write_layer(layer, tmp_path)
    sizes = {held.name: len(held.raw_data) for held in model.graph.initializer}
    assert sizes["layer.codes"] == 0
    assert max(sizes.values()) < EXTERNAL_BYTES
    offsets = [
        int(entry.value)
        for held in model.graph.initializer
        for entry in held.external_data
        if entry.key == "offset"
    ]
    assert len(set(offsets)) == len(offsets)
    assert all(offset % 4096 == 0 for offset in offsets)
    assert (tmp_path / DATA).stat().st_size > WIDTH * OUTPUTS


def test_rounded_values(tmp_path):
    """dtype=f16 stores values in fp16, and multiplies them in fp32."""
    layer, x = trained_layer("w4a16")
    model = write_layer(layer, tmp_path, torch.float16)
    values, folded = stored_values(tmp_path, model, "layer")
    assert torch.equal(values, weight_codes(layer).folded().half().float())
    assert weight_codes(layer).different(values, folded) == 0
    session = onnxruntime.InferenceSession(tmp_path / MODEL, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    exact = torch.nn.functional.linear(x, values, layer.bias)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
