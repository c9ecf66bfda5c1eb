"""The formats of ``questtrain export``: what each can hold, and which programs run it.

Plain data, so that help and ``--list`` need neither torch nor a runtime's packages; how a format is
written is a class in `questtrain.inference.export`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LLAMA_CPP = ("xllamacpp", "gguf")
ONNX_RUNTIMES: dict[str, tuple[str, ...]] = {
    name: (name, "onnx", "tokenizers") for name in ("onnxruntime", "openvino")
}


@dataclass(frozen=True)
class FormatEntry:
    """``writer`` is the class of the format, ``holds`` says in a line what it can hold;
    ``runtimes`` read it, the first by default, each with the packages that its process imports;
    ``needs`` are the optional packages without which it cannot even be written."""

    writer: str
    holds: str
    runtimes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


EXPORT_FORMATS = {
    "packed": FormatEntry(
        "PackedFormat",
        "every run; weights as codes in their bits",
        {"questtrain": ("questtrain", "torch")},
    ),
    "hf": FormatEntry(
        "HuggingFaceFormat",
        "every run; a plain Llama where activations are not quantized, else packed codes",
        {"transformers": ("transformers", "torch", "tokenizers", "accelerate")},
    ),
    "gguf": FormatEntry(
        "GgufFormat",
        "every run with 16-bit activations, its weights dense: exact in f32",
        {"llama.cpp": LLAMA_CPP, "transformers": ("transformers", "gguf", "torch")},
    ),
    "gguf-packed": FormatEntry(
        "GgufPackedFormat",
        "unrotated runs with 16-bit activations, their codes in llama.cpp's block formats",
        {"llama.cpp": LLAMA_CPP, "llama.cpp-f32": LLAMA_CPP},
    ),
    "gguf-rotated": FormatEntry(
        "GgufRotatedFormat",
        "rotated runs with 16-bit activations, for forks that read prism.hadamard.* keys",
    ),
    "onnx": FormatEntry(
        "OnnxFormat",
        "every run; integer products where both operands are quantized",
        ONNX_RUNTIMES,
        needs=("onnx",),
    ),
    "onnx-packed": FormatEntry(
        "OnnxPackedFormat",
        "runs with 16-bit activations, weights of up to 4 bits as codes, rotated or not",
        ONNX_RUNTIMES,
        needs=("onnx",),
    ),
    "compressed-tensors": FormatEntry(
        "CompressedTensorsFormat",
        "unrotated runs w1a16 … w7a16 and wfp4a16, w8a16 with quant.grid=int",
        {"transformers": ("transformers", "compressed_tensors", "torch")},
    ),
    "mlx": FormatEntry(
        "MlxFormat",
        "bf16 runs, and unrotated ones w1a16 … w8a16 and wfp4a16",
        {"mlx-lm": ("mlx_lm", "mlx")},
    ),
}
