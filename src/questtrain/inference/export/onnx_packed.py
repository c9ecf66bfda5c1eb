"""``format=onnx-packed``: `format=onnx`, with the weights of 16-bit activations in 2 or 4 bits each
(docs/export-onnx.md)."""

from __future__ import annotations

from questtrain.inference.export.format import Options
from questtrain.inference.export.onnx import OnnxFormat
from questtrain.inference.export.onnx_linear import stores_codes
from questtrain.inference.export.source import Source


class OnnxPackedFormat(OnnxFormat):
    """Its one operator that is not standard, com.microsoft's MatMulNBits, is in both runtimes."""

    name = "onnx-packed"
    packs = True

    def refusal(self, source: Source, options: Options) -> str | None:
        """Of a run without a layer for the operator."""
        if any(stores_codes(source.linear(name)) for name in source.linear_names()):
            return None
        return (
            f"bits={source.config.bits} has no layer with activations of 16 bits and a weight of at"
            " most 16 levels, dense and not FP4: format=onnx holds it, its weights as bytes where"
            " both operands are quantized, else as values."
        )
