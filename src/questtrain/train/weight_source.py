"""What a run can start from: ``init_from`` names a folder, and `weight_source` says of which kind
it is. All kinds give the same: the model's shape, its weights under our names, their hash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from questtrain.config import ModelConfig, non_embedding_params
from questtrain.config.loading import read_config
from questtrain.data.tokenizer import FILENAMES
from questtrain.errors import UserError
from questtrain.model.hf_quantization import METHOD
from questtrain.model.huggingface import hf_names, model_config_of
from questtrain.packed import MANIFEST, PackedFolder, is_packed_folder
from questtrain.store.checkpoint import Checkpoint, latest_checkpoint
from questtrain.store.files import no_such_folder, sha256_of_hashes
from questtrain.store.initial_weights import InitialWeights
from questtrain.store.weight_files import WeightFiles

FLOATS = ("F32", "BF16", "F16")
NOT_TRAINED = "_quantizer."
"""In the names of what belongs to a quantizer: a learned scale is of one format."""
RECOMPUTED = "rotary_emb.inv_freq"
"""Ends names in old folders of what follows from config.json."""


class WeightSource(Protocol):
    """A folder of weights. ``model`` is their model's shape, ``bos_token`` what began its documents
    (None: what its tokenizer says), ``max_length`` the longest sequence it was made for (None: not
    said)."""

    folder: Path
    model: ModelConfig
    bos_token: str | None
    max_length: int | None

    def facts(self, init_from: str) -> InitialWeights:
        """What a run remembers of it."""

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Our name, shape and dtype of every weight; UserError for what cannot be read."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our name and values of every weight, one at a time."""

    def spelled(self, name: str) -> str:
        """What the folder calls the weight that we call ``name``."""
        return name


def weight_source(init_from: str) -> WeightSource:
    """The weights in a folder, whose kind its files tell: another kind is another class here.

    UserError where there is none, or none that can be started from.
    """
    folder = Path(os.path.expanduser(init_from))
    if not os.path.isdir(folder):  # False, too, for a name that no folder can have
        raise no_such_folder(f"init_from={init_from}", folder)
    if (folder / "config.yaml").is_file():
        return RunWeights(folder)
    if is_packed_folder(folder):
        return PackedWeights(folder)
    if (folder / "config.json").is_file():
        return HuggingFaceWeights(folder)
    raise UserError(
        f"init_from={init_from}: there is nothing to start from. It can be a run's folder"
        f" (config.yaml and checkpoints), a packed export of one ({MANIFEST}), or a Hugging Face"
        " folder of the Llama family (config.json and model.safetensors)."
    )


def tokenizer_of(folder: Path) -> Path | None:
    """The tokenizer's file in a folder of weights."""
    return next((folder / name for name in FILENAMES if (folder / name).is_file()), None)


class RunWeights(WeightSource):
    """The newest intact checkpoint of a run of ours, whatever its bits and method were."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder / "config.yaml")
        self.folder, self.model = folder, config.model
        self.bos_token, self.max_length = config.data.bos_token, None

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            raise UserError(f"init_from: {self.folder} holds no checkpoint yet.")
        return checkpoint

    @cached_property
    def _files(self) -> WeightFiles:
        return WeightFiles.of(self._checkpoint.folder)

    def facts(self, init_from: str) -> InitialWeights:
        checkpoint = self._checkpoint
        return InitialWeights(init_from, "run", checkpoint.weights_sha256, checkpoint.step)

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        return (header for header in self._files.headers() if NOT_TRAINED not in header[0])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return (named for named in self._files.tensors() if NOT_TRAINED not in named[0])


class PackedWeights(WeightSource):
    """What `questtrain export format=packed` wrote: of quantized weights the values that the codes
    stand for, in the space of the trained ones."""

    def __init__(self, folder: Path) -> None:
        export = PackedFolder.open(folder, check=False)
        self.folder, self.model, self._manifest = folder, export.config.model, export.manifest
        self.bos_token, self.max_length = export.config.data.bos_token, None

    def facts(self, init_from: str) -> InitialWeights:
        sha256 = sha256_of_hashes(dict(sorted(self._manifest.sha256.items())))
        return InitialWeights(init_from, "packed", sha256, self._manifest.step)

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """From its configuration; all files are compared with their checksums first."""
        model = PackedFolder.open(self.folder).skeleton.model
        for name, weight in model.named_parameters():
            if NOT_TRAINED not in name:
                yield name, tuple(weight.shape), "F32"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return PackedFolder.open(self.folder, check=False).dense()


class HuggingFaceWeights(WeightSource):
    """A folder that transformers reads: a config.json of the Llama family and safetensors."""

    def __init__(self, folder: Path) -> None:
        config = _config_json(folder / "config.json")
        _refuse_export_of_codes(folder, config)
        try:
            model = model_config_of(config)
        except UserError as error:
            raise UserError(f"init_from: {folder / 'config.json'}: {error}") from error
        self.folder, self.model = folder, replace(model, name=_size_name(model))
        longest = config.get("max_position_embeddings")
        self.bos_token = None
        self.max_length = longest if isinstance(longest, int) else None

    @cached_property
    def _files(self) -> WeightFiles:
        return WeightFiles.of(self.folder)

    def spelled(self, name: str) -> str:
        return hf_names(self.model).get(name, name)

    @cached_property
    def _our_names(self) -> dict[str, str]:
        """A name that is not ours stands for itself."""
        ours = {theirs: ours for ours, theirs in hf_names(self.model).items()}
        names = [name for listed in self._files.names.values() for name in listed]
        return {name: ours.get(name, name) for name in names if not name.endswith(RECOMPUTED)}

    def facts(self, init_from: str) -> InitialWeights:
        return InitialWeights(init_from, "hugging-face", self._files.sha256())

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        names = self._our_names
        headers = self._files.headers()
        return ((names[name], shape, dtype) for name, shape, dtype in headers if name in names)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        names = self._our_names
        return ((names[name], tensor) for name, tensor in self._files.tensors() if name in names)


def _config_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"init_from: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"init_from: {path} holds no configuration.")
    return content


def _refuse_export_of_codes(folder: Path, config: Mapping[str, Any]) -> None:
    """UserError for what `questtrain export` wrote with codes in place of weights: layers of ours,
    or another program's."""
    written = config.get("quantization_config") or config.get("quantization")  # the latter: mlx
    ours = isinstance(written, dict) and written.get("quant_method") == METHOD
    if written and (ours or (folder / "certificate.json").is_file()):
        raise UserError(
            f"init_from: {folder} is an export of quantized weights: give the run that it was made"
            " of, or an export of that run with format=packed."
        )


def _size_name(model: ModelConfig) -> str:
    """As our sizes are called: ``1236M``, ``52k``."""
    count = non_embedding_params(model)
    return f"{count / 1e3:.4g}k" if count < 1e6 else f"{count / 1e6:.4g}M"
