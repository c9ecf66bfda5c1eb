"""An exported ONNX model in onnxruntime or OpenVINO."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from questtrain.inference.export.onnx_graph import MODEL

Array = npt.NDArray[Any]
Cache = dict[str, Array]
"""Keys and values by the name of the input that takes them."""

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Inputs to outputs, by name."""


class OnnxModel:
    """Token ids int64 ``[B, T]``, and the cache of the tokens before them → logits fp32
    ``[B, T, V]`` and the cache that holds them too."""

    def __init__(self, folder: Path, runtime: str) -> None:
        start = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime]
        self._run, pasts = start(folder / MODEL)
        self._pasts = {name: (heads, width) for name, (_, heads, _, width) in pasts.items()}

    def __call__(
        self, tokens: Tensor, cache: Cache | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """``mask`` int64 ``[B, P + T]`` is 0 where a sequence is padded on its left."""
        batch, length = tokens.shape
        if cache is None:
            cache = {
                name: np.zeros((batch, heads, 0, width), np.float32)
                for name, (heads, width) in self._pasts.items()
            }
        past = next(iter(cache.values())).shape[2]
        if mask is None:
            mask = torch.ones(batch, past + length, dtype=torch.int64)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, past:]
        inputs = {
            "input_ids": tokens.numpy(),
            "attention_mask": mask.numpy(),
            "position_ids": positions.numpy(),
            **cache,
        }
        outputs = self._run(inputs)
        cache = {name: outputs[_present(name)] for name in self._pasts}
        return torch.from_numpy(outputs["logits"]), cache


def _present(name: str) -> str:
    return re.sub("^past_key_values", "present", name)


def _is_past(name: str) -> bool:
    return name.startswith("past_key_values.")


def _onnxruntime(file: Path) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run, {each.name: each.shape for each in session.get_inputs() if _is_past(each.name)}


def _openvino(file: Path) -> tuple[Run, dict[str, Any]]:
    """In fp32 and with activations as they are, which is not what it does where the CPU has faster
    instructions for less."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(file, "CPU", exact)

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs: dict[str, Array] = {}
        for port, value in compiled(dict(inputs)).items():  # a port can have several names
            outputs |= dict.fromkeys(port.names, np.array(value))
        return outputs

    pasts = {each.any_name: _sizes(each) for each in compiled.inputs if _is_past(each.any_name)}
    return run, pasts


def _sizes(port: Any) -> list[int]:
    return [size.get_length() if size.is_static else -1 for size in port.partial_shape]
