"""Lightning: training goes on from its checkpoints as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader

import questtrain
from tests.integration.models import LanguageModel, loss_of, rows

pytestmark = pytest.mark.filterwarnings(
    # of the machine: its cores, and that it has Slurm
    "ignore:The .train_dataloader. does not have many workers",
    "ignore:The .srun. command is available",
    # that training goes on in the folder of its checkpoints
    "ignore:Checkpoint directory .* exists and is not empty",
    # Lightning 2.6 takes batches apart with a class that torch 2.13 deprecates
    "ignore:.*treespec, LeafSpec:FutureWarning",
)


class Task(lightning.LightningModule):
    def __init__(self, method: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = questtrain.convert(LanguageModel(), "w4a4", method)
        self.losses: list[float] = []

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        loss = loss_of(self.model, tokens)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AdamW(self.parameters(), lr=1e-2)


def fit(task: Task, folder: Path, precision: str, resume: str | None = None) -> str:
    """Two epochs of five steps; gives the checkpoint after the first."""
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1)
    lightning.Trainer(
        max_steps=10,
        accelerator="cpu",
        precision=precision,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # whatever machine this is
    ).fit(task, DataLoader(rows(20), batch_size=4), ckpt_path=resume)
    return str(folder / "epoch=0-step=5.ckpt")


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("quest", "32-true"),
        ("quest", "bf16-true"),
        ("lsq", "bf16-mixed"),
        ("lsq-plus", "bf16-true"),
    ],
)
def test_a_resumed_fit_is_the_unbroken_one(method: str, precision: str, tmp_path: Path) -> None:
    """Bit for bit: losses, weights and learned scales."""
    unbroken, resumed = Task(method), Task(method)
    middle = fit(unbroken, tmp_path, precision)
    fit(resumed, tmp_path, precision, middle)
    assert resumed.losses == unbroken.losses[5:]
    assert len(set(unbroken.losses)) > 5  # in bf16 two may coincide
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    learned = questtrain.learned_parameters(resumed)
    assert all(scale != 0 and scale.dtype == torch.float32 for scale in learned)
    loaded = Task.load_from_checkpoint(middle, method=method, weights_only=False)
    assert len(questtrain.learned_parameters(loaded)) == len(learned)
