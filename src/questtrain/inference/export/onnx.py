"""``format=onnx``: any run as one graph of standard operators, with its cache as inputs and outputs
(docs/export-onnx.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import onnx
import torch
from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.hf_folder import config_refusal, write_config
from questtrain.inference.export.onnx_graph import MODEL, Graph
from questtrain.inference.export.onnx_linear import stored_values
from questtrain.inference.export.onnx_llama import LlamaWriter
from questtrain.inference.export.onnx_run import OnnxModel
from questtrain.inference.export.rounding import bound_of_codes
from questtrain.inference.export.source import Source
from questtrain.inference.export.tokenizer_files import (
    TOKENIZER,
    tokenizer_limits,
    write_tokenizer_files,
)


class OnnxFormat(ExportFormat):
    """One graph: weights as values or bytes, or where it ``packs`` as codes of fewer bits;
    activations quantized by plain operators."""

    name = "onnx"
    runtimes = EXPORT_FORMATS["onnx"].runtimes

    packs: ClassVar[bool] = False

    def refusal(self, source: Source, options: Options) -> str | None:
        """None: whatever is trained is values times a matrix."""
        return None

    def write(self, source: Source, folder: Path, options: Options) -> None:
        with closing(Graph(folder)) as graph:
            LlamaWriter(graph, source, options.torch_dtype, self.packs).write()
            graph.save(source.config.model.name, {"questtrain.bits": source.config.bits})
        if config_refusal(source) is None:  # what optimum reads
            write_config(source, folder, torch.float32, {})
        write_tokenizer_files(source.tokenizer, source.config.sequence_length, folder)
        write_card(source, folder, LOADING)

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        model = onnx.load(folder / MODEL, load_external_data=False)
        return stored_values(folder, model, name)

    def bound(self, source: Source, options: Options, runtime: str) -> Bound:
        largest, argmax = ROUNDING[options.dtype]
        if source.quantizes_activations:
            return bound_of_codes(source, options.torch_dtype)
        return Bound(largest=largest, median=largest, argmax=argmax)

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        limits = tokenizer_limits(source.tokenizer)
        if source.quantizes_activations:
            limits.append(
                "Activations are quantized in fp32: single codes at a rounding border can differ"
                " from those of the trained model, where a sum is taken in another order."
            )
        if options.dtype != "f32":
            limits.append(f"What is no code is rounded to {options.dtype}; products are fp32.")
        return limits

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        model = OnnxModel(folder, runtime)
        for tokens in prompts:
            yield in_two_parts(model, tokens)

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        """What tokenizer.json makes of every text, BOS included; the runtimes have no tokenizer."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.encode_special_tokens = True
        for text in texts:
            ids: list[int] = tokenizer.encode(text).ids
            yield ids


LOADING = """\
With onnxruntime or OpenVINO: `model.onnx`, with its large tensors in `model.onnx_data`, takes
`input_ids`, `attention_mask`, `position_ids` and the cache `past_key_values.N.key` and `.value`,
and gives `logits` and `present.N.key` and `.value`, the names that optimum gives them. Every text
begins with BOS, which `tokenizer.json` puts there.
"""

ROUNDING = {"f32": (1e-4, 0.999), "f16": (2e-2, 0.99), "bf16": (2e-1, 0.95)}
"""The largest logit difference and the least share of equal most likely tokens, by the dtype of
what is no code: fp32 products in another order, and values rounded by 2^-11 and 2^-8 of them."""


def in_two_parts(model: OnnxModel, tokens: Tensor) -> Tensor:
    """Logits ``[T, V]`` of ``tokens [T]``: the first half fills the cache, the second continues it,
    so that both ways of the graph are tried."""
    half = len(tokens) // 2
    first, cache = model(tokens[None, :half])
    second, _ = model(tokens[None, half:], cache)
    return torch.cat((first, second), 1)[0]
