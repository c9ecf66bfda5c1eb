"""Trained runs to export: each is trained once, by the worker whose test first asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from torch import Tensor

from questtrain.cli.main import main
from questtrain.inference.export import written
from questtrain.inference.export.runtime import Answer

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

FAMILY = {
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 32,
    "model.tie_embeddings": "true",
    "model.rope_scaling": "{rope_type: linear, factor: 2}",
}
"""What Hugging Face's Llama family has."""

Trained = Callable[..., Path]


def in_format(run: Path, folder: Path, bits: str, settings: Mapping[str, object]) -> Path:
    """A run of the same weights in another format, as if it had been trained so."""
    shutil.copytree(run, folder, copy_function=os.link)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["bits"] = bits
    for key, value in settings.items():
        group, name = key.split(".")
        config[group][name] = value
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@torch.no_grad()
def answer_here(
    form: Any,
    folder: Path,
    runtime: str,
    prompts: Sequence[Tensor],
    device: str,
    texts: Sequence[str],
) -> Answer:
    """`runtime.ask` without a process of its own, which takes seconds to start."""
    logits = list(form.logits(folder, runtime, prompts, device))
    return Answer(logits, list(form.token_ids(folder, runtime, texts)))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are certified by `answer_here`."""
    monkeypatch.setattr(written, "ask", answer_here)


@pytest.fixture(scope="session")
def trained(corpus: list[str], shared_folder: Path) -> Trained:
    """``trained("w4a4", "quest", **{"quant.grid": "int"})`` → the folder of a completed run, the
    same for the same words."""
    runs = shared_folder / "trained"

    def run(bits: str, method: str = "quest", **settings: object) -> Path:
        chosen = [f"{key}={value}" for key, value in sorted(settings.items())]
        name = "-".join((bits, method, *chosen)).translate(str.maketrans("[]*,/=", "......"))
        folder = runs / name
        with FileLock(shared_folder / f"{name}.lock"):
            if not folder.exists():
                words = [*SMALL, *corpus, f"bits={bits}", f"method={method}", *chosen]
                assert main(["train", *words, f"runs_dir={runs}", f"name={name}"]) == 0
        return folder

    return run
