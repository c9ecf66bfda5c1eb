"""What formats share that hold a plain Llama whose weights are small integers times scales, and
nothing else of quantization: no rotation, no quantized activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from questtrain.inference.export.format import Options
from questtrain.inference.export.hf_folder import config_refusal, within
from questtrain.inference.export.integers import coded_layers
from questtrain.inference.export.source import Source, WeightCodes
from questtrain.model.huggingface import hf_names
from questtrain.quant.packing import rotation_block
from questtrain.quant.quantizer import Quantizer
from questtrain.store.tensor_files import METADATA, Planned, TensorFiles


def why_not(source: Source, reader: str) -> str | None:
    """Why ``reader``, a program that multiplies such weights, would not compute the run."""
    for name in source.linear_names():
        if isinstance(source.meta_linear(name).activation_quantizer, Quantizer):
            return (
                f"bits={source.bits} quantizes activations ({name}'s, to begin with), which"
                f" {reader} does not as they were trained: format=packed, format=onnx and"
                " format=hf hold that."
            )
    for name, quantizer in coded_layers(source).items():
        if rotation_block(quantizer.rotation) != 1:
            return (
                f"the codes of {name} are of a rotated weight, and {reader} knows no rotation:"
                " format=packed and format=onnx hold it, format=hf and format=gguf its values"
                " rotated back; method=quest-noht trains without."
            )
    return config_refusal(source)


Layout = Callable[[str], dict[str, Planned]]
"""Tensors of a layer's weight beside its name."""

Packed = Callable[[WeightCodes], dict[str, Tensor]]


def write_weights(
    source: Source,
    folder: Path,
    options: Options,
    layout: Layout,
    packed: Packed,
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Safetensors under Hugging Face's names, a tensor at a time: of the layers that are quantized
    what ``packed`` makes of their codes, everything else in the options' dtype."""
    dtype, coded = options.torch_dtype, coded_layers(source)
    planned: dict[str, Planned] = {}
    theirs = hf_names(source.config.model)
    weights = {f"{layer}.weight": layer for layer in coded}
    for name, other in theirs.items():
        if name in weights:
            parts = layout(weights[name])
            planned |= {within(other, part): each for part, each in parts.items()}
        else:
            planned[other] = Planned(dtype, source.shape(name))
    with TensorFiles(folder, planned, options.shard_bytes, metadata) as files:
        for name, other in theirs.items():
            if name not in weights:
                files.write(other, source.tensor(name).to(dtype))
                continue
            codes = source.codes(weights[name])
            assert codes is not None
            for part, tensor in packed(codes).items():
                files.write(within(other, part), tensor)
