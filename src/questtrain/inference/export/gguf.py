"""GGUF with dense weights, for llama.cpp and what is built on it: exact where activations are not
quantized, in F32 down to the last bits of a sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export import gguf_tokenizer
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import ExportFormat, Options
from questtrain.inference.export.gguf_file import (
    DENSE,
    FILE,
    Entry,
    around_the_blocks,
    dense_entry,
    gguf_name,
    in_file_order,
    model_refusal,
    read_tensor,
    write_file,
)
from questtrain.inference.export.source import Source
from questtrain.inference.export.transformers_run import causal_lm_logits

LOADING = """llama.cpp and programs built on it load `model.gguf`:

```
llama-cli -m model.gguf --cache-type-k f32 --cache-type-v f32 --flash-attn off -p "Once upon"
```

Without these options keys and values are rounded to 16 bits."""
BY_TRANSFORMERS = """transformers makes a dense model of it:
`AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file="model.gguf")`."""


class GgufFormat(ExportFormat):
    """The weights' values, the inverse rotation folded in."""

    name = "gguf"
    runtimes = EXPORT_FORMATS["gguf"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        return activations_refusal(source) or file_refusal(source)

    def write(self, source: Source, folder: Path, options: Options) -> None:
        entries = around_the_blocks(source, options.dtype)
        for name in source.linear_names():
            entries.append(dense_linear(source, name, options.dtype))
        write_file(source, folder, entries, DENSE[options.dtype][1])
        write_card(source, folder, f"{LOADING}\n\n{BY_TRANSFORMERS}", "gguf")

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return read_tensor(folder, name), True

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        return [*context_limits(source), *precision_limits(options.dtype)]

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        return run(folder, runtime, prompts, device)

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        return encode(folder, runtime, texts)


def dense_linear(source: Source, name: str, dtype: str) -> Entry:
    """A linear layer's matrix, folded, as floating-point numbers."""
    shape = source.shape(f"{name}.weight")

    def values() -> Tensor:
        return in_file_order(source, name, source.folded(name))

    return dense_entry(f"{gguf_name(name)}.weight", shape, dtype, values)


def activations_refusal(source: Source) -> str | None:
    """llama.cpp has no layer whose activations are quantized as ours are."""
    if not source.quantizes_activations:
        return None
    return (
        f"bits={source.config.bits} quantizes activations ({source.linear_names()[0]} and all"
        " others), which no GGUF file can say: format=onnx, format=hf and format=packed hold it."
    )


def file_refusal(source: Source) -> str | None:
    """llama.cpp must have the architecture, and make the same ids of a text."""
    if (reason := model_refusal(source.config.model)) is not None:
        return f"{reason} format=packed and format=onnx hold it."
    why = gguf_tokenizer.refusal(source.tokenizer)
    return why and f"{why}. format=hf and format=onnx take any tokenizer."


def context_limits(source: Source) -> list[str]:
    """Of every GGUF file of ours."""
    found = [
        "A key/value cache in F16 and flash attention, llama.cpp's defaults, change logits by"
        " up to 1e-3: the comparison was made with F32 keys and values and without it.",
        "llama.cpp's server takes the spelling of a special token in a prompt for the token; as"
        " text it has other ids. Where that matters, send ids.",
    ]
    if gguf_tokenizer.is_nfc(source.tokenizer):
        found.append("The tokenizer composes characters first (NFC); llama.cpp does not.")
    return found


def precision_limits(dtype: str) -> list[str]:
    if dtype == "f32":
        return []
    return [
        f"Values are {dtype.upper()}, and llama.cpp's CPU backend rounds what they multiply to"
        f" {dtype.upper()} as well; dtype=f32 is exact."
    ]


def run(folder: Path, runtime: str, prompts: Sequence[Tensor], device: str) -> Iterator[Tensor]:
    """Logits fp32 ``[T, V]`` of every prompt by one of the programs that read the file."""
    if runtime == "llama.cpp":
        from questtrain.inference.export.llama_cpp import LlamaCpp

        model = LlamaCpp(folder / FILE, max(map(len, prompts)))
        yield from map(model.logits, prompts)
        return
    how = {"gguf_file": FILE, "dtype": torch.float32, "device_map": device}
    yield from causal_lm_logits(folder, prompts, **how)


def encode(folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of every text as a prompt."""
    if runtime == "llama.cpp":
        from questtrain.inference.export.llama_cpp import LlamaCpp

        yield from map(LlamaCpp(folder / FILE, 256).encode, texts)
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    for text in texts:
        yield tokenizer(text, split_special_tokens=True).input_ids
