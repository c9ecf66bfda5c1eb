"""Real sweeps of tiny runs in processes of their own: started, watched, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tests.training_data import TINY, rows

STEPS = 100
SETTINGS = dict(word.split("=") for word in TINY) | {
    "max_steps": STEPS,
    "log_every": 1,
    "eval_every": 10,
    "checkpoint_every": 5,
}


def write_sweep(folder: Path, **axes: Sequence[object]) -> Path:
    """``tiny.yaml`` in ``folder``: runs of a second or two on one core."""
    settings = {key: yaml.safe_load(str(value)) for key, value in SETTINGS.items()}
    file = folder / "tiny.yaml"
    content = {"settings": settings, "axes": axes or {"bits": ["w4a4", "bf16"]}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def start(*words: str, **keywords) -> subprocess.Popen[str]:
    """``questtrain sweep WORDS`` in a process."""
    command = [sys.executable, "-m", "questtrain.cli.main", "sweep", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords
    )


def run(*words: str, **keywords) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a whole ``questtrain sweep WORDS``."""
    process = start(*words, **keywords)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Return as soon as the condition holds; the process must not end before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def logged(folder: Path) -> int:
    """How many training steps the runs of a sweep's folder have logged in all."""
    return sum(file.read_bytes().count(b"train_loss") for file in folder.glob("*/metrics.jsonl"))


def children(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of the runs that a sweeper has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def losses(folder: Path) -> dict[str, tuple[list, list]]:
    """Each finished run's training and validation losses at every logged step, bit for bit."""
    return {
        file.parent.name: (rows(file.parent, "train_loss"), rows(file.parent, "val_loss"))
        for file in folder.glob("*/run.json")
    }


def attempts(folder: Path) -> dict[str, int]:
    """How often each run was started."""
    files = (folder / ".sweep").glob("*.json")
    return {file.stem: json.loads(file.read_text())["attempts"] for file in files}
