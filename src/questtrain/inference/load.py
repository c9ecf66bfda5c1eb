"""From a run folder to a model that can be called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from questtrain.config import TrainConfig
from questtrain.config.loading import read_config
from questtrain.data import Tokenizer, load_tokenizer
from questtrain.device import choose_device
from questtrain.errors import UserError, suggestion
from questtrain.model import Llama
from questtrain.quant import QuantLinear
from questtrain.store.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    open_checkpoint,
    step_of,
)


@dataclass(frozen=True)
class TrainedModel:
    """A run's model, ready for use, with its tokenizer and config."""

    model: Llama
    tokenizer: Tokenizer
    config: TrainConfig
    step: int


def load(run: str | Path, device: str = "auto", step: int | None = None) -> Llama:
    """The model of a run folder: token ids ``[batch, length]`` → logits ``[batch, length, vocab]``.

    In evaluation mode and with its weights quantized once. ``step`` picks a checkpoint, the
    newest intact one by default. Raises UserError for a folder that holds no run.
    """
    return load_run(run, device, step).model


def load_run(run: str | Path, device: str = "auto", step: int | None = None) -> TrainedModel:
    """`load` with the tokenizer and config that belong to the model."""
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={run}: there is no such folder.{_similar(folder)}")
    config = read_config(folder / "config.yaml")
    checkpoint = _choose_checkpoint(folder, step)
    model = Llama(config.model, config.bits, config.quant)
    checkpoint.load_weights(model)
    model.to(choose_device(device)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.freeze_weight()
    return TrainedModel(model, _tokenizer(folder), config, checkpoint.step)


def _choose_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    if step is None:
        newest = latest_checkpoint(folder)
        if newest is None:
            raise UserError(f"{folder} holds no checkpoint yet.")
        return newest
    steps = {step_of(path): path for path in checkpoint_folders(folder)}
    if step not in steps:
        raise UserError(f"{folder} holds no checkpoint of step {step}, only {sorted(steps)}.")
    return open_checkpoint(steps[step])


def _tokenizer(folder: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).exists():
            return load_tokenizer(str(folder / name))
    raise UserError(f"{folder} holds no tokenizer.json or tokenizer.model.")


def _similar(folder: Path) -> str:
    if not folder.parent.is_dir():
        return ""
    runs = [str(path) for path in folder.parent.iterdir() if (path / "config.yaml").exists()]
    return suggestion(str(folder), runs)
