"""Trained runs to export: each is trained once a session, when the first test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from questtrain.cli.main import main

FORMATS = ("bf16", "w4a16", "w2a16", "w1a16", "w1.58a16", "w4a4", "w1a1")
METHODS = ("quest", "quest-noht")
MATRIX = [(bits, method) for bits in FORMATS for method in METHODS[: 1 + (bits != "bf16")]]
"""What every export format is tried on: bits and method, rotated or not."""

SMALL = (
    "model=nano",
    "model.num_layers=2",
    "model.hidden_size=256",
    "batch_size=2",
    "micro_batch_size=2",
    "sequence_length=64",
    "max_steps=3",
    "eval_every=3",
    "checkpoint_every=3",
    "train.validation_tokens=256",
    "train.threads=1",
    "device=cpu",
)
"""A run of a second: 256 wide, so that blocks of 256 weights fit in a row."""

Trained = Callable[..., Path]


@pytest.fixture(scope="session")
def trained(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``trained("w4a4", "quest", **{"quant.grid": "int"})`` → the folder of a completed run, the
    same for the same words."""
    runs = tmp_path_factory.mktemp("trained")

    def run(bits: str, method: str = "quest", **settings: object) -> Path:
        chosen = [f"{key}={value}" for key, value in sorted(settings.items())]
        name = "-".join((bits, method, *chosen)).translate(str.maketrans("[]*,/=", "......"))
        folder = runs / name
        if not folder.exists():
            words = [*SMALL, *corpus, f"bits={bits}", f"method={method}", *chosen]
            assert main(["train", *words, f"runs_dir={runs}", f"name={name}"]) == 0
        return folder

    return run
