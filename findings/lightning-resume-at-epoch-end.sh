#!/usr/bin/env bash
# lightning 2.6.6, torch 2.13.0: a training of two epochs, stopped by max_steps after the first and resumed from
# ckpt_path, sees the first batch of the epoch twice and the last not at all, if the checkpoint was written at the
# end of that epoch by ModelCheckpoint(save_on_train_epoch_end=True) or by save_checkpoint() after fit. The extra batch has
# an index past the epoch's end (2 of 0..1). Nothing is said. With every_n_train_steps, at the same step, it is exact.
# Seen: "unbroken 0 1 0 1; every_n_train_steps 0 1; on_train_epoch_end 2 0; save_checkpoint 2 0".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.0 lightning==2.6.6 2>/dev/null
cd "$w"
"$w/venv/bin/python" - <<'P'
import logging
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.indices = torch.nn.Linear(2, 1), []

    def training_step(self, batch, index):
        self.indices.append(index)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(steps, checkpoints=None, resume=None):
    task = Task()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[checkpoints] if checkpoints else None, enable_checkpointing=checkpoints is not None,
    )
    trainer.fit(task, torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=4), ckpt_path=resume)
    return trainer, task.indices


def resumed(**when):
    checkpoints = ModelCheckpoint(str(when), **when)
    fit(2, checkpoints)
    return fit(4, resume=checkpoints.best_model_path)[1]


seen = {"unbroken": fit(4)[1], "every_n_train_steps": resumed(every_n_train_steps=2)}
seen["on_train_epoch_end"] = resumed(every_n_epochs=1, save_on_train_epoch_end=True)
fit(2)[0].save_checkpoint("after.ckpt")
seen["save_checkpoint"] = fit(4, resume="after.ckpt")[1]
print("; ".join(f"{name} {' '.join(map(str, indices))}" for name, indices in seen.items()))
raise SystemExit(0 if list(seen.values()) == [[0, 1, 0, 1], [0, 1], [2, 0], [2, 0]] else 1)
P
