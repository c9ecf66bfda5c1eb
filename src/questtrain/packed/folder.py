"""A packed folder, read one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from questtrain.config import TrainConfig
from questtrain.data import Tokenizer, load_tokenizer
from questtrain.errors import UserError
from questtrain.model import Llama
from questtrain.model.meta import without_numbers
from questtrain.packed.manifest import MANIFEST, Manifest, read_manifest
from questtrain.quant import QuantLinear
from questtrain.quant.quantizer import QuantizedTensor, Quantizer
from questtrain.quant.stored_weight import StoredQuantizer, StoredWeight
from questtrain.store.tensor_files import Planned
from questtrain.store.weight_files import WeightFiles

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""Of the numbers that are no codes, by the names that exports call them."""

_STATE = ("weight_quantizer.", "activation_quantizer.")


class Skeleton:
    """A config's model without its weights: what a packed folder of it holds.

    A quantized weight is the tensors of its `StoredWeight`, ``NAME.weight.codes``, …; its own
    quantizer has no state that they do not say. Everything else is a tensor of the model, in
    ``dtype``, but for the state of activation quantizers (learned steps, …): in fp32.
    """

    def __init__(self, config: TrainConfig) -> None:
        with without_numbers():
            self.model = Llama(config.model, config.bits, config.quant)
        modules = self.model.named_modules()
        self.linears = {name: each for name, each in modules if isinstance(each, QuantLinear)}

    @cached_property
    def weights(self) -> dict[str, StoredWeight]:
        """The quantized weights, by their layer's name."""
        found = {name: StoredWeight.of(layer) for name, layer in self.linears.items()}
        return {name: stored for name, stored in found.items() if stored is not None}

    def tensors(self, dtype: torch.dtype) -> dict[str, Planned]:
        """All other tensors."""
        coded = tuple(f"{name}.{part}" for name in self.weights for part in ("weight", _STATE[0]))
        return {
            name: Planned(torch.float32 if _is_state(name) else dtype, tuple(tensor.shape))
            for name, tensor in self.model.state_dict().items()
            if not name.startswith(coded)
        }

    def planned(self, dtype: torch.dtype) -> dict[str, Planned]:
        """Everything, a layer's tensors one after the other."""
        names, tensors = {**self.model.state_dict()}, self.tensors(dtype)
        planned: dict[str, Planned] = {}
        for name in names:
            layer = name.removesuffix(".weight")
            if name in tensors:
                planned[name] = tensors[name]
            elif layer in self.weights:
                planned |= weight_names(layer, self.weights[layer])
        return planned


def weight_names(layer: str, stored: StoredWeight) -> dict[str, Planned]:
    """The tensors of a quantized weight by their names in the file."""
    return {f"{layer}.weight.{part}": Planned(*each) for part, each in stored.layout().items()}


def _is_state(name: str) -> bool:
    return any(f".{kind}" in name for kind in _STATE)


def is_packed_folder(folder: Path) -> bool:
    """Whether it is one, damaged or not."""
    return (folder / MANIFEST).exists()


@dataclass(frozen=True)
class PackedFolder:
    """What ``questtrain export format=packed`` wrote. UserError wherever it is damaged."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, check: bool = True) -> PackedFolder:
        """``check``: read all files and compare their checksums."""
        manifest = read_manifest(folder)
        if manifest.dtype not in DTYPES:
            raise UserError(f"{folder / MANIFEST} is damaged: 'dtype' holds {manifest.dtype!r}.")
        if check:
            manifest.check_files(folder)
        return cls(folder, manifest)

    @cached_property
    def config(self) -> TrainConfig:
        return self.manifest.train_config(self.folder)

    @cached_property
    def skeleton(self) -> Skeleton:
        return Skeleton(self.config)

    @cached_property
    def _stored(self) -> WeightFiles:
        return WeightFiles.of(self.folder)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own, with the BOS that began its documents."""
        return load_tokenizer(str(self.folder / self.manifest.tokenizer), bos=self.manifest.bos_id)

    def weight(self, layer: str) -> QuantizedTensor:
        """A layer's quantized weight, as its quantizer gave it."""
        stored = self.skeleton.weights[layer]
        start = len(f"{layer}.weight.")
        names = weight_names(layer, stored)
        return stored.weight({name[start:]: self._stored.read(name, names[name]) for name in names})

    def tensor(self, name: str) -> Tensor:
        """Any other tensor, as it is stored."""
        return self._stored.read(name, self._tensors[name])

    @cached_property
    def _tensors(self) -> dict[str, Planned]:
        return self.skeleton.tensors(DTYPES[self.manifest.dtype])

    def values(self, layer: str) -> Tensor:
        """What a layer's weight stands for, fp32 ``[N, K]`` in the space of its codes."""
        if layer not in self.skeleton.weights:
            return self.tensor(f"{layer}.weight").float()
        quantizer = self.skeleton.linears[layer].weight_quantizer
        assert isinstance(quantizer, Quantizer)
        return quantizer.dequantize(self.weight(layer))

    def model(self) -> Llama:
        """The model on the CPU, with its layers' weights still in the file: they are read where the
        model is packed (`questtrain.inference.pack`) or a layer's weight frozen. Until then that
        holds no numbers, and takes no memory."""
        model = Skeleton(self.config).model.to_empty(device="cpu")
        state = {name: self.tensor(name) for name in self._tensors}
        model.load_state_dict(state, strict=False)
        for name in self.skeleton.weights:
            layer = model.get_submodule(name)
            quantizer = layer.weight_quantizer
            assert isinstance(quantizer, Quantizer)
            layer.weight_quantizer = StoredQuantizer(quantizer, partial(self.weight, name))
        return model

    def dense(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of the model by its name, fp32; of a quantized weight the values, as they
        multiply what the layer is given: rotated back, where they are codes of a rotated weight."""
        for name in self._tensors:
            if not _is_state(name):
                yield name, self.tensor(name).float()
        for layer in self.skeleton.weights:
            yield f"{layer}.weight", self.unrotated(layer)

    def unrotated(self, layer: str) -> Tensor:
        """`values` in the space of the trained weight."""
        quantizer = self.skeleton.linears[layer].weight_quantizer
        assert isinstance(quantizer, Quantizer)
        unrotated: Tensor = quantizer.rotation(self.values(layer))
        return unrotated
