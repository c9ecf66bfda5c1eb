"""Shared by all tests: hypothesis' settings, and the YAML files of ``conf/`` without Hydra."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings

from questtrain.config import TrainConfig
from questtrain.config.loading import config_from_mapping
from tests.training_data import corpus_settings, make_corpus

# The same examples everywhere, and no time limit a shared machine could break.
settings.register_profile("questtrain", deadline=None, derandomize=True)
settings.load_profile("questtrain")

# Where workers share the cores (`make test`), each has one thread, and so have the processes that
# its tests start. torch, which reads this, is imported later.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under nohup it is ignored, here and in every process that a test starts; some tests send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers: what a test makes there it must make under a lock."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def corpus(shared_folder: Path) -> list[str]:
    """``data=`` settings of a small real corpus, prepared when the first run asks for it."""
    folder = shared_folder / "corpus"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_corpus(folder)
    return corpus_settings(folder)


Compose = Callable[..., TrainConfig]


def _read(path: str) -> dict[str, Any]:
    file = resources.files("questtrain.conf").joinpath(f"{path}.yaml")
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def compose() -> Compose:
    """``compose("800M", bits="w4a4", quant={"hadamard_block": 64})`` → an unvalidated config."""

    def composed(size: str = "30M", /, **overrides: Any) -> TrainConfig:
        mapping = _read("train")
        defaults = [entry for entry in mapping.pop("defaults") if entry != "_self_"]
        for group, choice in (pair for entry in defaults for pair in entry.items()):
            if group != "model":
                mapping["quant" if group == "method" else group] = _read(f"{group}/{choice}")
        for layer in (_read(f"model/{size}"), overrides):
            for key, value in layer.items():
                nested = isinstance(value, dict)
                mapping[key] = {**(mapping.get(key) or {}), **value} if nested else value
        return config_from_mapping(TrainConfig, mapping)

    return composed
