"""A checkpoint's state is loaded in place into a step that trouble has damaged, all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from questtrain.store.checkpoint import latest_checkpoint
from questtrain.train.divergence import LossWatch
from questtrain.train.saved_state import load_state, save_state
from questtrain.train.step import TrainingStep
from tests.conftest import Compose


@pytest.mark.parametrize("method", ["quest", "lsq-plus"])
def test_in_place_and_whole(compose: Compose, tmp_path: Path, method: str) -> None:
    """A captured graph reads the same addresses; no moment of the damaged step is left, and none of
    what is quantized once a step."""
    config = compose(
        "nano",
        bits="w4a4",
        quant={"method": method, **({"scale": "learned-step"} if method == "lsq-plus" else {})},
        model={"num_layers": 1, "hidden_size": 32, "vocab_size": 64},
        train={"on_divergence": "rollback", "spike_window": 8},
        batch_size=2,
        sequence_length=16,
    )
    step, watch = TrainingStep(config, torch.device("cpu")), LossWatch(config.train)
    batches = np.random.default_rng(0).integers(0, 64, (4, 2, 17))
    watch.note(*step(batches[0], 1e-2))
    assert watch.look(1) is None
    save_state(tmp_path, 1, step, watch, 0.0, ())
    expected = [float(step(batch, 1e-2)[0]) for batch in batches[1:]]
    addresses = [weight.data_ptr() for weight in step.model.parameters()]
    kept = watch.losses
    with torch.no_grad():
        step.model.lm_head.weight[0] = float("nan")
    watch.note(*step(batches[3], 1e-2))
    step.optimizer.state.clear()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_state(checkpoint, step, watch)
    assert [weight.data_ptr() for weight in step.model.parameters()] == addresses
    assert torch.equal(watch.losses, kept)
    assert watch.look(1) is None
    assert [float(step(batch, 1e-2)[0]) for batch in batches[1:]] == expected
