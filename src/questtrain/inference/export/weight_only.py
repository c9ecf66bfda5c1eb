"""What formats share that hold a plain Llama whose weights are small integers times scales, and
nothing else of quantization: no rotation, no quantized activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from questtrain.errors import UserError
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import Options
from questtrain.inference.export.source import Source, WeightCodes
from questtrain.inference.export.tokenizer_files import write_tokenizer_files
from questtrain.model.huggingface import hf_config, hf_names
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from questtrain.quant.packing import rotation_block
from questtrain.quant.quantizer import Quantizer
from questtrain.store.files import write_json
from questtrain.store.tensor_files import METADATA, Planned, TensorFiles

CONFIG = "config.json"


class Integers(NamedTuple):
    """A weight's ``values`` int16 ``[N, K]``, and fp32 ``units [N, G]`` that they count, one for
    K/G columns: their products are the weight's values to the bit."""

    values: Tensor
    units: Tensor


def reach(grid: Grid) -> int:
    """The largest integer of a grid's `integers`."""
    if isinstance(grid, E2M1Grid):
        return 12
    assert isinstance(grid, UniformGrid)
    return grid.levels - 1 if grid.levels % 2 == 0 else grid.levels // 2


def integers(codes: WeightCodes) -> Integers:
    """Odd ones of a centred grid, of half a step each; whole steps of one that holds zero; of FP4
    twice its numbers. What sparsity prunes is 0."""
    grid = codes.grid
    if isinstance(grid, UniformGrid):
        values = 2 * codes.codes.to(torch.int16) - (grid.levels - 1)
        units = codes.half_widths / (grid.levels - 1)
        if grid.levels % 2:
            values, units = values // 2, 2 * units
    else:
        # Of a grid from -12 to 12 its numbers are whole.
        scale = torch.tensor(float(reach(grid)))
        values = grid.decode(codes.codes.float(), scale).to(torch.int16)
        units = codes.half_widths / reach(grid)
    if codes.kept is not None:
        values = values * codes.kept
    return Integers(values, units.expand(values.shape[0], -1))


def coded_layers(source: Source) -> dict[str, Quantizer]:
    """The layers whose weights are quantized, and by what: without numbers."""
    quantizers = {name: source.meta_linear(name).weight_quantizer for name in source.linear_names()}
    return {name: each for name, each in quantizers.items() if isinstance(each, Quantizer)}


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
    try:
        hf_config(source.config.model, source.config.sequence_length)
    except UserError as error:
        return f"{error} format=packed holds it."
    return None


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


def within(weight: str, part: str) -> str:
    """``…q_proj.weight`` and ``scales`` → ``…q_proj.scales``."""
    return f"{weight.removesuffix('weight')}{part}"


def write_rest(
    source: Source, folder: Path, options: Options, quantization: dict[str, Any], loading: str
) -> None:
    """config.json with what a format adds to it, the tokenizer's files and the card."""
    config, bos = source.config, source.tokenizer.bos_id
    dtype = str(options.torch_dtype).removeprefix("torch.")
    content = hf_config(config.model, config.sequence_length, dtype, bos, bos, bos)
    write_json(folder / CONFIG, content | quantization)
    write_tokenizer_files(source.tokenizer, config.sequence_length, folder)
    write_card(source, folder, loading)
