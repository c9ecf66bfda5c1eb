"""From a run folder, or an export of it in the packed format, to a model that can be called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from questtrain.config import TrainConfig, at_step
from questtrain.config.loading import read_config
from questtrain.data import Tokenizer, load_tokenizer
from questtrain.data.bos import BosError
from questtrain.data.identity import read_identity
from questtrain.device import choose_device
from questtrain.errors import UserError
from questtrain.inference.pack import multiplies_as_stored, pack
from questtrain.kernels.dispatch import serves_cpu
from questtrain.kernels.extension import serves
from questtrain.model import Llama
from questtrain.packed import PackedFolder, is_packed_folder
from questtrain.quant import QuantLinear
from questtrain.store.checkpoint import (
    checkpoint_at,
    checkpoint_folder,
    latest_checkpoint,
)
from questtrain.store.checkpoint_folders import checkpoint_folders
from questtrain.store.files import no_such_folder


@dataclass(frozen=True)
class TrainedModel:
    """A run's model, ready for use, with its tokenizer and config; of a run that switches its bits
    ``config.bits`` are those of the model at its ``step``."""

    model: nn.Module
    tokenizer: Tokenizer
    config: TrainConfig
    step: int


def load(
    run: str | Path, device: str = "auto", step: int | None = None, packed: bool | None = False
) -> nn.Module:
    """The model of a run folder, or of what ``questtrain export format=packed`` wrote: token ids
    ``[batch, length]`` → logits ``[batch, length, vocab]``.

    In evaluation mode and with its weights quantized once. ``step`` picks a checkpoint, the
    newest intact one by default. ``packed`` keeps the weights as codes and uses the kernels, on a
    GPU with everything else in bf16; None does where that is faster: where there are kernels for
    the device, and on a CPU for all of the model's layers. Raises
    UserError for a folder that holds no run, and for a model that cannot be packed.
    """
    return load_run(run, device, step, packed).model


def load_run(
    run: str | Path, device: str = "auto", step: int | None = None, packed: bool | None = False
) -> TrainedModel:
    """`load` with the tokenizer and config that belong to the model."""
    folder = _folder(run)
    if is_packed_folder(folder):
        return _load_packed(folder, device, step, packed)
    _refuse_foreign_export(folder)
    config = read_config(folder / "config.yaml")
    checkpoint = latest_checkpoint(folder) if step is None else checkpoint_at(folder, step)
    if checkpoint is None:
        raise _no_checkpoint(folder)
    config = at_step(config, checkpoint.step)
    model = Llama(config.model, config.bits, config.quant)
    checkpoint.load_weights(model)
    ready = for_use(model, choose_device(device), packed)
    tokenizer = tokenizer_of(folder, config)
    return TrainedModel(ready, tokenizer, config, checkpoint.step)


def check_run(run: str | Path, step: int | None = None) -> None:
    """UserError where `load_run` would raise one for what is seen without reading weights: no run,
    no export, no checkpoint, or none of that ``step``."""
    folder = _folder(run)
    if is_packed_folder(folder):
        _check_step(PackedFolder.open(folder, check=False), step)
        return
    _refuse_foreign_export(folder)
    read_config(folder / "config.yaml")
    if step is not None:
        checkpoint_folder(folder, step)
    elif not checkpoint_folders(folder):
        raise _no_checkpoint(folder)


def _folder(run: str | Path) -> Path:
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise no_such_folder(f"run={run}", folder)
    return folder


def _no_checkpoint(folder: Path) -> UserError:
    return UserError(f"{folder} holds no checkpoint yet.")


def _check_step(export: PackedFolder, step: int | None) -> None:
    if step not in (None, export.manifest.step):
        raise UserError(
            f"{export.folder} is an export of step {export.manifest.step}, not of {step}."
        )


def _load_packed(folder: Path, device: str, step: int | None, packed: bool | None) -> TrainedModel:
    """The same of an export, whose weights are codes already."""
    export = PackedFolder.open(folder)
    _check_step(export, step)
    ready = for_use(export.model(), choose_device(device), packed)
    return TrainedModel(ready, export.tokenizer, export.config, export.manifest.step)


def _refuse_foreign_export(folder: Path) -> None:
    """UserError for an export that is of another program."""
    if (folder / "certificate.json").exists() and not (folder / "config.yaml").exists():
        raise UserError(
            f"{folder} is an export for another program, which questtrain does not load: give the"
            " run's folder, or an export with format=packed."
        )


def for_use(model: Llama, device: torch.device, packed: bool | None) -> nn.Module:
    """The model on its device, with packed weights or with the values they stand for. A weight is
    quantized on the CPU, wherever it is used: to the same codes on all devices, and in an
    export."""
    model.eval().requires_grad_(False)
    linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
    has_kernels = serves(device) or serves_cpu(device)
    quantized = any(linear.bits.weight.quantized for linear in linears)
    if packed or (packed is None and has_kernels and quantized):
        ready = pack(model, torch.bfloat16 if device.type == "cuda" else None)
        # On a CPU what the library does not multiply as it is stored is faster as values.
        if packed or device.type == "cuda" or multiplies_as_stored(ready):
            return ready.to(device)
    for linear in linears:
        linear.freeze_weight()
    return model.to(device)


def tokenizer_of(folder: Path, config: TrainConfig) -> Tokenizer:
    """The run's own, with the BOS that began its documents."""
    data = read_identity(folder)
    bos = config.data.bos_token if data is None else data.bos_id
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).exists():
            try:
                return load_tokenizer(str(folder / name), bos=bos)
            except BosError as error:
                where = f"The run's data.bos_token stands in {folder / 'config.yaml'}."
                raise UserError(f"{error} {where}") from error
    raise UserError(f"{folder} holds no tokenizer.json or tokenizer.model.")
