"""Runs that are killed at random and go on with other numbers of processes: the same bits?

    python benchmarks/soak.py [OUTPUT.json] [--seconds 300] [--steps 300] [--seed N]

One process trains `nano` with ``train.reproducible=true`` on Python's own sources, to the end.
Then, for so many seconds, the same run is trained again and again by 1, 2 or 4 processes on this
machine's cores: after a random time a rank or the command gets SIGKILL, SIGTERM or SIGINT, and
another number of processes goes on, until it has ended. Each time the weights, AdamW's moments and
all losses must be those of the unbroken run, bit for bit: the first difference ends the soak with
exit code 1. The round that is under way when the time is over is finished.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from questtrain.bench.environment import environment
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.store.files import sha256_of, write_json
from questtrain.store.metric_rows import read_metric_rows

SETTINGS = (
    "model=nano",
    "data=stdlib",
    "bits=w4a4",
    "model.num_layers=2",
    "model.hidden_size=64",
    "sequence_length=64",
    "batch_size=16",
    "micro_batch_size=2",
    "log_every=1",
    "eval_every=50",
    "checkpoint_every=20",
    "train.validation_tokens=2048",
    "train.reproducible=true",
    "device=cpu",
)
SIZES = (1, 2, 4)
LONGEST_WAIT = 1.0
"""Until a fault, in units of what the unbroken run takes."""
PATIENCE = 120.0
"""Seconds after a fault within which every process must have ended."""
NUMBERS = ("train_loss", "grad_norm", "val_loss")


@dataclass
class Round:
    """One run to its end: how often it was started, by how many, and what happened to it."""

    starts: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    equal: bool = False


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="of the faults; default: the time")
    options = parser.parse_args(words)
    seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    with TemporaryDirectory(prefix="soak") as folder:
        rounds = soak(Path(folder), options.steps, options.seconds, chance)
    if options.output is not None:
        command = shlex.join(["python", "benchmarks/soak.py", *(words or sys.argv[1:])])
        write_json(options.output, result_of(rounds, seed, options.steps, command))
    return 0 if all(each.equal for each in rounds) else 1


def soak(runs: Path, steps: int, seconds: float, chance: random.Random) -> list[Round]:
    """Rounds for so long, or up to the first one whose bits differ."""
    settings = [*SETTINGS, f"max_steps={steps}", f"runs_dir={runs}"]
    began = time.monotonic()
    subprocess.run(command_of(1, [*settings, "name=unbroken"]), check=True, capture_output=True)
    longest = LONGEST_WAIT * (time.monotonic() - began)
    expected = bits_of(runs / "unbroken", steps)
    rounds: list[Round] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(each.equal for each in rounds):
        name = f"round{len(rounds)}"
        rounds.append(Round())
        train_with_faults([*settings, f"name={name}"], name, rounds[-1], chance, longest)
        rounds[-1].equal = bits_of(runs / name, steps) == expected
        said = ", ".join(f"{count} × {fault}" for fault, count in rounds[-1].faults.items())
        equal = "the same bits" if rounds[-1].equal else "OTHER BITS"
        print(f"{name}: processes {rounds[-1].starts}, {said or 'no fault'}: {equal}", flush=True)
    return rounds


def train_with_faults(
    settings: Sequence[str],
    name: str,
    noted: Round,
    chance: random.Random,
    longest: float,
) -> None:
    """Start it, disturb it after ``longest`` seconds at the most, and so on until it has ended
    well; SystemExit where a process outlives a fault or a start fails by itself."""
    while True:
        size = chance.choice(SIZES)
        noted.starts.append(size)
        process = subprocess.Popen(
            command_of(size, settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=chance.uniform(0, longest))
            if process.returncode == 0:
                return
            raise SystemExit(f"{name}: {size} processes ended by themselves:\n{errors}")
        noted.faults[disturb(process, chance)] += 1
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            end_all(process)
            raise SystemExit(f"{name}: still there {PATIENCE} s after {noted.faults}") from None


def disturb(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Send a signal to the command or to one of its ranks; what was done."""
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    ranks = children_of(process.pid)
    if ranks and chance.random() < 0.75:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(ranks), number)
        return f"{number.name} to a rank"
    with suppress(ProcessLookupError):
        process.send_signal(number)
    return f"{number.name} to the command"


def children_of(pid: int) -> list[int]:
    """The processes that it has started and that are there."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill the command and its ranks."""
    for pid in (*children_of(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_of(size: int, settings: Sequence[str]) -> list[str]:
    """`questtrain train` by so many processes."""
    gpus = [] if size == 1 else [f"gpus={size}"]
    return [sys.executable, "-m", "questtrain.cli.main", "train", *settings, *gpus]


def bits_of(run: Path, steps: int) -> dict[str, Any]:
    """SHA-256 of weights and moments after the last step, and every number on the way."""
    last = checkpoint_folders(run)[-1]
    assert last.name == f"step_{steps:08d}", last
    found: dict[str, Any] = {
        part: sha256_of(last / f"{part}.safetensors") for part in ("model", "optimizer")
    }
    logged = read_metric_rows(run / "metrics.jsonl")
    for name in NUMBERS:
        found[name] = [(row["step"], row[name]) for row in logged if name in row]
    return found


def result_of(rounds: Sequence[Round], seed: int, steps: int, command: str) -> dict[str, Any]:
    """What the output file holds."""
    import torch

    faults = sum((each.faults for each in rounds), Counter[str]())
    return {
        "environment": environment(torch.device("cpu"), command),
        "seed": seed,
        "steps": steps,
        "rounds": len(rounds),
        "rounds_of_the_same_bits": sum(each.equal for each in rounds),
        "starts": {str(n): sum(each.starts.count(n) for each in rounds) for n in SIZES},
        "faults": dict(sorted(faults.items())),
    }


if __name__ == "__main__":
    sys.exit(main())
