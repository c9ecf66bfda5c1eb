#!/usr/bin/env bash
# onnxruntime 1.32.0: a graph of standard operators that only stores its weight in 4 bits, DequantizeLinear (int4, blocks) and MatMul,
# is by default (graph optimization ORT_ENABLE_EXTENDED and above) made into MatMulNBits with accuracy_level 4, which
# rounds the *activations* to 8 bits, too: the product is off by about 1e-2 of its size instead of 1e-6, without a word. As written
# it is computed only with ORT_ENABLE_BASIC, or with the session setting session.qdq_matmulnbits_accuracy_level=1.
# Seen: "basic 5.5e-07; default 8.1e-03; default, level 1 5.5e-07".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.0 2>/dev/null
"$w/venv/bin/python" - <<'P'
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH, OUTPUTS, BLOCK = 256, 128, 32
random = np.random.default_rng(0)
codes = random.integers(-8, 8, (WIDTH, OUTPUTS)).astype(np.int8)
scales = random.random((WIDTH // BLOCK, OUTPUTS)).astype(np.float32) * 0.01 + 0.01
x = random.standard_normal((4, WIDTH)).astype(np.float32)
exact = x.astype(np.float64) @ (codes * np.repeat(scales, BLOCK, 0)).astype(np.float64)
nodes = [
    helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=0, block_size=BLOCK),
    helper.make_node("MatMul", ["x", "v"], ["y"]),
]
ends = [
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])]
    for name, size in (("x", WIDTH), ("y", OUTPUTS))
]
tensors = [numpy_helper.from_array(codes.astype(ml_dtypes.int4), "w"), numpy_helper.from_array(scales, "s")]
graph = helper.make_graph(nodes, "linear", *ends, tensors)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def error(level=None, accuracy=None):
    options = ort.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    if accuracy is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"x": x})[0] - exact).max() / np.abs(exact).max())


basic, default, level_1 = error(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC), error(), error(accuracy="1")
print(f"basic {basic:.1e}; default {default:.1e}; default, level 1 {level_1:.1e}")
raise SystemExit(0 if max(basic, level_1) < 1e-5 and default > 1e-3 else 1)
P
