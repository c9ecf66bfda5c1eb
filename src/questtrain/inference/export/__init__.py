"""Export: a run's model in the format of another program, with a certificate that it computes what
was trained."""

from __future__ import annotations

from importlib import import_module

from questtrain.errors import unknown
from questtrain.inference.export.format import ExportFormat

FORMATS = {
    "packed": "PackedFormat",
    "hf": "HuggingFaceFormat",
    "gguf": "GgufFormat",
    "gguf-packed": "GgufPackedFormat",
    "gguf-rotated": "GgufRotatedFormat",
    "onnx": "OnnxFormat",
    "onnx-packed": "OnnxPackedFormat",
    "compressed-tensors": "CompressedTensorsFormat",
    "mlx": "MlxFormat",
}
"""The class of each format, in the module of its name."""


def export_format(name: str) -> ExportFormat:
    """The format of a name; UserError for an unknown one."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    module = import_module(f"questtrain.inference.export.{name.replace('-', '_')}")
    form: ExportFormat = getattr(module, FORMATS[name])()
    return form
