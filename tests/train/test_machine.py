"""What a run asks of the machine: refused before it starts, with the estimate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from questtrain.config import total_params, training_bytes, validate
from questtrain.device import control_group_limits, host_memory_bytes
from questtrain.errors import UserError
from questtrain.process import available_cores
from questtrain.train import machine
from questtrain.train.machine import check_memory, set_threads
from questtrain.train.parallel import World

if TYPE_CHECKING:
    from tests.conftest import Compose

CPU = torch.device("cpu")


def test_more_memory_than_there_is(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte of the estimate, which the message repeats with what it is made of."""
    config = compose("30M", batch_size=8, micro_batch_size=4)
    validate(config)
    state = 16 * total_params(config.model, 32_000)
    needed = 2 * training_bytes(config, 32_000) - state
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: needed)
    check_memory(config, CPU, World())
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: needed - 1)
    with pytest.raises(UserError) as caught:
        check_memory(config, CPU, World())
    for part in (
        "micro_batch_size=4 × sequence_length=512",
        "model.hidden_size=640",
        "data.vocab_size=32000",
        f"{needed / 2**30:.3g} GiB",
    ):
        assert part in str(caught.value)
    check_memory(config, torch.device("cuda"), World())


def test_threads_beyond_the_cores() -> None:
    cores = available_cores()
    before = torch.get_num_threads()
    set_threads(None)
    assert torch.get_num_threads() == before
    with pytest.raises(UserError, match=rf"train\.threads={cores + 1}: {cores} cores"):
        set_threads(cores + 1)
    try:
        set_threads(cores)
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "1000\n"}, [1000]),
        ("0::/a/b\n", {"a/memory.max": "500", "a/b/memory.max": "max"}, [500]),
        ("0::/a/b\n", {"memory.max": "9", "a/memory.max": "7", "a/b/memory.max": "8"}, [8, 7, 9]),
        (
            "3:cpu,cpuacct:/x\n2:memory:/y\n",
            {"memory/y/memory.limit_in_bytes": "77", "memory/memory.limit_in_bytes": "99"},
            [77, 99],
        ),
        ("0::/gone\n", {}, []),
    ],
    ids=["root", "parent", "all", "version 1", "none"],
)
def test_limits_of_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], limits: list[int]
) -> None:
    """Of the process's own group and of those above it; ``max`` is none."""
    (tmp_path / "cgroup").write_text(groups)
    root = tmp_path / "fs"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert list(control_group_limits(tmp_path / "cgroup", root)) == limits
    assert not list(control_group_limits(tmp_path / "no such file", root))


def test_this_machines_memory() -> None:
    assert 2**27 < host_memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
