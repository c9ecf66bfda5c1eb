"""``format=hf``: a folder that transformers loads (docs/export-hf.md).

A run whose activations are not quantized is a plain Llama of transformers, its weights' values with
the inverse rotation folded in. Any other one holds packed codes and the layers' own quantizers, and
is loaded after ``import questtrain.hf``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from questtrain.config import is_skipped
from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.hf_folder import (
    HuggingFaceFolder,
    config_refusal,
    planned_layer,
    write_settings,
)
from questtrain.inference.export.rounding import bound_of_codes
from questtrain.inference.export.source import Source
from questtrain.inference.export.tokenizer_files import tokenizer_limits
from questtrain.inference.export.transformers_run import (
    causal_lm_logits,
    tokenizer_class,
    tokenizer_class_limits,
    tokenizer_ids,
)
from questtrain.model.hf_quantization import quantization_config
from questtrain.model.huggingface import hf_names
from questtrain.quant.guarded_linear import GuardedLinear
from questtrain.store.tensor_files import Planned, TensorFiles

CODES = {
    "f16": Bound(largest=None, median=5e-2, argmax=0.9),
    "bf16": Bound(largest=None, median=0.2, argmax=0.8),
}
"""Of quantized activations in 16 bits: much takes another code. A layer that is wrong leaves little
of the argmax."""


class HuggingFaceFormat(ExportFormat):
    """What `AutoModelForCausalLM.from_pretrained` loads."""

    name = "hf"
    runtimes = EXPORT_FORMATS["hf"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        return config_refusal(source)

    def write(self, source: Source, folder: Path, options: Options) -> None:
        if source.quantizes_activations:
            write_codes(source, folder, options)
        else:
            write_plain(source, folder, options)
        write_settings(source, folder, options, quantization(source))
        write_card(source, folder, loading(source), "transformers")

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return HuggingFaceFolder(folder).values(name)

    def bound(self, source: Source, options: Options, runtime: str) -> Bound:
        if not source.quantizes_activations:
            return super().bound(source, options, runtime)
        return bound_of_codes(source) if options.dtype == "f32" else CODES[options.dtype]

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        limits = tokenizer_limits(source.tokenizer)
        if source.quantizes_activations:
            limits.append(
                "Without `import questtrain.hf` transformers refuses the folder: it finds no"
                " weights of the shape that it expects."
            )
        limits += tokenizer_class_limits(source.config.model)
        if options.dtype != "f32":
            limits.append(f"Numbers that are no codes are rounded to {options.dtype}.")
        limits.append(
            "`questtrain generate` drops the older half of a text that fills the context;"
            " transformers' generate goes on beyond it."
        )
        return limits

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        if HuggingFaceFolder(folder).settings is not None:
            import questtrain.hf  # noqa: F401  (registers the quantizer)
        return causal_lm_logits(folder, prompts, device_map=device)

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        return tokenizer_ids(folder, HuggingFaceFolder(folder).model, texts)


def quantization(source: Source) -> dict[str, Any]:
    """What config.json says of quantized activations: nothing where there are none."""
    if not source.quantizes_activations:
        return {}
    config = source.config
    return {"quantization_config": quantization_config(config.model, config.bits, config.quant)}


def write_plain(source: Source, folder: Path, options: Options) -> None:
    """model.safetensors with all values, a tensor at a time."""
    dtype, names = options.torch_dtype, hf_names(source.config.model)
    planned = {names[name]: Planned(dtype, source.shape(name)) for name in names}
    linears = {f"{name}.weight": name for name in source.linear_names()}
    with TensorFiles(folder, planned, options.shard_bytes) as files:
        for name, theirs in names.items():
            ours = linears.get(name)
            values = source.tensor(name) if ours is None else source.folded(ours)
            files.write(theirs, values.to(dtype))


def write_codes(source: Source, folder: Path, options: Options) -> None:
    """model.safetensors with the layers as `GuardedLinear`s, a tensor at a time."""
    dtype, names = options.torch_dtype, hf_names(source.config.model)
    layers = {
        name: names[f"{name}.weight"].removesuffix(".weight")
        for name in source.linear_names()
        if not is_skipped(name, source.config.quant.skip)
    }
    within = tuple(f"{name}." for name in layers)
    rest = {name: theirs for name, theirs in names.items() if not name.startswith(within)}
    planned = {theirs: Planned(dtype, source.shape(name)) for name, theirs in rest.items()}
    for name, theirs in layers.items():
        parts = planned_layer(source.meta_linear(name), dtype)
        planned |= {f"{theirs}.{key}": each for key, each in parts.items()}
    with TensorFiles(folder, planned, options.shard_bytes) as files:
        for name, theirs in rest.items():
            files.write(theirs, source.tensor(name).to(dtype))
        for name, theirs in layers.items():
            for key, tensor in GuardedLinear.of(source.linear(name)).state_dict().items():
                place = f"{theirs}.{key}"
                files.write(place, tensor.to(planned[place].dtype))


def loading(source: Source) -> str:
    """Markdown: how the folder is loaded."""
    needs = source.quantizes_activations
    words = (
        "Activations are quantized as in training, and weights are packed codes: transformers loads"
        " them with questtrain's layers, which use its kernels on GPUs and on CPUs where they are"
        " built. Without the first import it refuses the folder."
        if needs
        else "A plain model of the Llama family: what reads folders of transformers needs no more."
    )
    first = "import questtrain.hf\n" if needs else ""
    tokenizer = tokenizer_class(source.config.model)
    return (
        f"{words}\n\n```python\n{first}from transformers import AutoModelForCausalLM,"
        f" {tokenizer}\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", device_map="auto")\n'
        f'tokenizer = {tokenizer}.from_pretrained("FOLDER")\n'
        'inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))\n```\n\n"
        "The tokenizer puts BOS first, as every document began in training; there is no EOS, and a"
        " text ends where the model begins the next document."
    )
