"""When a model learns to copy: its loss on tokens that it has seen in the same sequence.

    python benchmarks/copying.py OUTPUT RUN [RUN …]

For every checkpoint of the runs: the mean loss in nats of random tokens that come a second time, in
the same order, and of their first time. The tokens are drawn evenly, so that nothing but copying
helps. Beside it stand the run's validation losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import questtrain

SEQUENCES, HALF = 64, 200


@torch.no_grad()
def copying(run: Path, step: int) -> dict[str, Any]:
    """Losses of the first and of the second half of repeated random sequences."""
    model: Any = questtrain.load(run, step=step)
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(model.config.vocab_size // 2, (SEQUENCES, HALF), generator=generator)
    tokens = torch.cat([half, half], dim=1).to(weight.device)
    losses = []
    for row in tokens.split(8):
        logits = model(row[:, :-1]).float()
        losses.append(F.cross_entropy(logits.transpose(1, 2), row[:, 1:], reduction="none"))
    loss = torch.cat(losses)
    first, second = loss[:, : HALF - 1].mean(), loss[:, HALF:].mean()
    return {"step": step, "first": round(float(first), 4), "second": round(float(second), 4)}


def of_run(run: Path) -> dict[str, Any]:
    """The run's record, validation losses and copying losses."""
    record = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [int(folder.name.split("_")[1]) for folder in sorted((run / "checkpoints").iterdir())]
    return {
        "name": run.name,
        "record": record,
        "validation": [[row["step"], row["val_loss"]] for row in rows if "val_loss" in row],
        "training": [[row["step"], row["train_loss"]] for row in rows if "train_loss" in row],
        "copying": [copying(run, step) for step in steps],
    }


if __name__ == "__main__":
    result = [of_run(Path(run)) for run in sys.argv[2:]]
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")
