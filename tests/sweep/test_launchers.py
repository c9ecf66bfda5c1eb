"""What every launcher has: settings with the defaults of its file, and the protocol's functions."""

from __future__ import annotations

import inspect
from importlib import resources

import pytest
import yaml

from questtrain.config.loading import config_from_mapping
from questtrain.errors import UserError
from questtrain.sweep.launchers import KINDS, Launcher, launcher_class, queued_runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_launcher_is_what_its_file_says(kind) -> None:
    file = resources.files("questtrain.conf") / "launcher" / f"{kind}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    launcher = launcher_class(kind)
    assert config_from_mapping(launcher, settings) == launcher()
    assert settings["kind"] == kind
    for name in ("check", "run", "queued"):
        ours, asked = (inspect.signature(getattr(c, name)) for c in (launcher, Launcher))
        assert list(ours.parameters) == list(asked.parameters)


def test_an_unknown_kind() -> None:
    with pytest.raises(UserError, match=r"unknown launcher\.kind 'slrum': .*Did you mean 'slurm'"):
        launcher_class("slrum")


def test_a_folder_of_which_no_queue_knows(tmp_path) -> None:
    assert queued_runs(tmp_path) == {}
