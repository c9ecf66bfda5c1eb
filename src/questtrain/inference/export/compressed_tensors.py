"""``format=compressed-tensors``: a folder of vLLM's and transformers' packed integers
(docs/export-compressed-tensors.md).

The layout is ``pack-quantized``, symmetric: a code c of b bits stands for ``c · scale``, stored as
``c + 2^(b-1)``, the first lowest, 32/b in an int32 word. Of the widths that the format has 4 and 8
bits are used: what straddles words has been read in another way by versions up to 0.17.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import ExportFormat, Options
from questtrain.inference.export.hf_folder import HuggingFaceFolder, write_settings
from questtrain.inference.export.integers import coded_layers, integers, reach
from questtrain.inference.export.source import Source, WeightCodes
from questtrain.inference.export.tokenizer_files import tokenizer_limits
from questtrain.inference.export.transformers_run import (
    causal_lm_logits,
    tokenizer_class,
    tokenizer_class_limits,
    tokenizer_ids,
)
from questtrain.inference.export.weight_only import (
    why_not,
    write_weights,
)
from questtrain.model.huggingface import hf_names
from questtrain.quant.dense_codes import pack_codes, unpack_codes
from questtrain.quant.quantizer import Quantizer
from questtrain.store.tensor_files import Planned

CONTAINERS = (4, 8)
"""Bits of a code."""

LOADING = """transformers with the package `compressed-tensors` loads it, and mlx-lm does not. vLLM
reads this format and was not run by questtrain; its kernels take 16-bit models: export with
`dtype=f16` or `dtype=bf16` for them.

```python
from transformers import AutoModelForCausalLM, TOKENIZER

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = TOKENIZER.from_pretrained("FOLDER")
```"""


class CompressedTensorsFormat(ExportFormat):
    """Weight-only runs without rotation, as integers of 4 or 8 bits."""

    name = "compressed-tensors"
    runtimes = EXPORT_FORMATS["compressed-tensors"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        coded = coded_layers(source)
        if (reason := why_not(source, "compressed-tensors")) is not None:
            return reason
        if not coded:
            return "none of its weights is quantized: format=hf is the folder of such a run."
        for name, quantizer in coded.items():
            if reach(quantizer.grid) >= 2 ** (CONTAINERS[-1] - 1):
                return (
                    f"the 256 values of {name} are odd integers up to ±{reach(quantizer.grid)}, and"
                    " a code has at most 8 bits: quant.grid=int trains 255 that fit, and"
                    " format=packed, format=mlx and format=hf hold these."
                )
            if source.shape(f"{name}.weight")[1] % 8:
                return f"the width of {name} is no multiple of 8: format=packed holds it."
        return None

    def write(self, source: Source, folder: Path, options: Options) -> None:
        bits = bits_for(coded_layers(source))
        layout = partial(planned_weight, source, bits=bits, dtype=options.torch_dtype)
        packed = partial(packed_weight, bits=bits, dtype=options.torch_dtype)
        write_weights(source, folder, options, layout, packed)
        write_settings(source, folder, options, quantization(source, bits))
        write_card(
            source, folder, LOADING.replace("TOKENIZER", tokenizer_class(source.config.model))
        )

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return values(folder, name), True

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        bits = bits_for(coded_layers(source))
        limits = [f"A code of w{source.bits.weight} takes {bits} bits."]
        if options.dtype == "f32":
            limits.append("vLLM, which was not run here, multiplies such weights in 16 bits alone.")
        else:
            limits.append(f"Scales, and all that is no code, are rounded to {options.dtype}.")
        limits += tokenizer_class_limits(source.config.model)
        return limits + tokenizer_limits(source.tokenizer)

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        return causal_lm_logits(folder, prompts, device_map=device)

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        return tokenizer_ids(folder, HuggingFaceFolder(folder).model, texts)


def bits_for(coded: dict[str, Quantizer]) -> int:
    """Of a code of such layers."""
    largest = max(reach(quantizer.grid) for quantizer in coded.values())
    return next(bits for bits in CONTAINERS if largest < 2 ** (bits - 1))


def quantization(source: Source, bits: int) -> dict[str, Any]:
    """What config.json says of it. A reader takes the format from the group, not from above it, and
    layers as random ones where the status is not "compressed" or the head is not ignored."""
    names, coded = hf_names(source.config.model), coded_layers(source)
    plain = [name for name in source.linear_names() if name not in coded]
    group = source.config.quant.group_size
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if group is None else "group",
        "group_size": group,
        "dynamic": False,
    }
    scheme = {"targets": ["Linear"], "format": "pack-quantized", "weights": weights}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": [
                "lm_head",
                *(names[f"{name}.weight"].removesuffix(".weight") for name in plain),
            ],
        }
    }


def planned_weight(source: Source, name: str, bits: int, dtype: torch.dtype) -> dict[str, Planned]:
    rows, columns = source.shape(f"{name}.weight")
    groups = columns // (source.config.quant.group_size or columns)
    return planned(rows, columns, groups, bits, dtype)


def planned(
    rows: int, columns: int, groups: int, bits: int, dtype: torch.dtype
) -> dict[str, Planned]:
    """The tensors of a weight ``[rows, columns]`` with so many scales a row."""
    return {
        "weight_packed": Planned(torch.int32, (rows, columns * bits // 32)),
        "weight_scale": Planned(dtype, (rows, groups)),
        "weight_shape": Planned(torch.int64, (2,)),
    }


def packed_weight(codes: WeightCodes, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same, with their numbers."""
    values, units = integers(codes)
    rows, columns = values.shape
    stored = (values + 2 ** (bits - 1)).to(torch.uint8)
    words = pack_codes(stored, 2**bits).view(torch.int32).view(rows, columns * bits // 32)
    return {
        "weight_packed": words,
        "weight_scale": units.to(dtype),
        "weight_shape": torch.tensor([rows, columns]),
    }


def values(folder: Path, name: str) -> Tensor:
    """What the folder holds of one of our layers, fp32 ``[N, K]``."""
    written = HuggingFaceFolder(folder)
    rows, columns = written.shape(name)
    if not written.has(name, "weight_packed"):
        return written.plain_weight(name)
    scheme = written.config["quantization_config"]["config_groups"]["group_0"]["weights"]
    bits, groups = scheme["num_bits"], columns // (scheme["group_size"] or columns)
    read = written.parts(name, planned(rows, columns, groups, bits, written.dtype))
    words = read["weight_packed"].flatten().view(torch.uint8)
    codes = unpack_codes(words, 2**bits, rows * columns).view(rows, groups, columns // groups)
    scales = read["weight_scale"].float().unsqueeze(-1)
    weights: Tensor = (codes.to(torch.int16) - 2 ** (bits - 1)) * scales
    return weights.view(rows, columns)
