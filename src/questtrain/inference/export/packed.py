"""``format=packed``: our own, in the bits that the model needs; `questtrain.load` reads it
(docs/export-packed.md)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.source import Source
from questtrain.inference.load import load
from questtrain.packed import Manifest, PackedFolder
from questtrain.quant.quantizer import Quantizer
from questtrain.store.tensor_files import TensorFiles
from questtrain.store.weight_files import WeightFiles

LOADING = """questtrain loads it, on CPUs and GPUs, and needs no run:

```python
import questtrain

model = questtrain.load("FOLDER")  # token ids [batch, length] → logits [batch, length, vocab]
```

or `questtrain generate run=FOLDER prompt="Once upon a time"`."""

ROUNDED = {"f16": Bound(None, 0.02, 0.95), "bf16": Bound(None, 0.2, 0.8)}
"""Where what is no code is rounded, and how it shows depends on the model: bf16 keeps 8 bits of an
embedding, f16 11. Quantized activations that lie on a border take another code then."""


class PackedFormat(ExportFormat):
    """Every run, bit for bit."""

    name = "packed"
    runtimes = EXPORT_FORMATS["packed"].runtimes

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=1)(partial(PackedFolder.open, check=False))

    def refusal(self, source: Source, options: Options) -> str | None:
        return None

    def write(self, source: Source, folder: Path, options: Options) -> None:
        skeleton, dtype = source.skeleton, options.torch_dtype
        planned = skeleton.planned(dtype)
        with TensorFiles(folder, planned, options.shard_bytes) as files:
            for name, each in skeleton.tensors(dtype).items():
                files.write(name, source.tensor(name).to(each.dtype))
            for layer, stored in skeleton.weights.items():
                linear = source.linear(layer)
                assert isinstance(linear.weight_quantizer, Quantizer)
                weight = linear.weight_quantizer.quantize(linear.weight)
                for part, tensor in stored.tensors(weight).items():
                    files.write(f"{layer}.weight.{part}", tensor)
        tokenizer = source.tokenizer
        shutil.copyfile(tokenizer.path, folder / tokenizer.path.name)
        Manifest.of(
            folder,
            source.config,
            source.columns,
            source.checkpoint.step,
            options.dtype,
            tokenizer.path.name,
            tokenizer.bos_id,
            [*WeightFiles.of(folder).files, tokenizer.path.name],
        ).write(folder)
        write_card(source, folder, LOADING)

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return self._open(folder).values(name), False

    def is_packed(self, source: Source) -> bool:
        return bool(source.skeleton.weights)

    def bound(self, source: Source, options: Options, runtime: str) -> Bound:
        return ROUNDED.get(options.dtype, Bound(0.0, 0.0, 1.0))

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        if options.dtype == "f32":
            return []
        return [f"Everything that is no code is rounded to {options.dtype}; dtype=f32 is exact."]

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        packed = bool(PackedFolder.open(folder, check=False).skeleton.weights)
        model = load(folder, device, packed=packed)
        for tokens in prompts:
            yield model(tokens.to(device).unsqueeze(0))[0].float().cpu()

    def token_ids(self, folder: Path, runtime: str, texts: Sequence[str]) -> Iterator[list[int]]:
        """As `questtrain generate` begins a prompt: with BOS."""
        tokenizer = self._open(folder).tokenizer
        for ids in tokenizer.encode_batch(texts):
            yield [tokenizer.bos_id, *ids]
