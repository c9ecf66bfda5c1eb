"""Training on a CPU: tokens/s of every format beside BF16's, and beside an older checkout's.

    python benchmarks/train_cpu.py [--old CHECKOUT] [--output FILE]

A case is a process of its own: the model nano, a warm-up, then whole optimizer steps on random
tokens. The cases take turns, so that all see the same machine; medians and extremes of all turns
are reported. Every case runs twice, with all that the CPU has and with AVX2 alone.

``--old`` is another checkout of questtrain, which runs W4A4 with its own sources. On a CPU with
VNNI it also runs with oneDNN turned off: `torch._int_mm`, which it multiplies with, then takes the
plain loop that it takes on CPUs without VNNI.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CASES = ("bf16", "w4a4", "w2a2", "w1a1", "w8a8", "w2a16", "w4a16", "w16a4", "fp4", "w4s24a4")
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "QUESTTRAIN_CPU_ISA": "avx2",
}
INSTRUCTIONS: dict[str, dict[str, str]] = {"all": {}, "avx2": AVX2}

WORKER = """
import json, sys, time
bits, steps, onednn = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "onednn"
import numpy as np
import torch
torch.backends.mkldnn.enabled = onednn
from questtrain.cli.hydra_config import compose_mapping
from questtrain.config import TrainConfig, validate
from questtrain.config.loading import config_from_mapping
from questtrain.train.step import TrainingStep
words = ["model=nano", "data=stdlib", f"bits={bits}", "model.vocab_size=4096", "device=cpu"]
config = config_from_mapping(TrainConfig, compose_mapping("train", TrainConfig, words))
validate(config)
step = TrainingStep(config, torch.device("cpu"))
rng = np.random.default_rng(0)
taken = []
for _ in range(steps + 2):
    batch = rng.integers(4096, size=(config.batch_size, config.sequence_length + 1))
    start = time.perf_counter()
    loss, _ = step(batch, 1e-3)
    loss = float(loss)
    taken.append(time.perf_counter() - start)
tokens = config.batch_size * config.sequence_length
print(json.dumps({"tokens_per_second": [tokens / seconds for seconds in taken[2:]], "loss": loss}))
"""


def run_case(
    bits: str, steps: int, environment: dict[str, str], source: Path, onednn: bool
) -> dict[str, Any]:
    """One process: tokens/s of each step, and the last loss."""
    command = [sys.executable, "-c", WORKER, bits, str(steps), "onednn" if onednn else "none"]
    path = {"PYTHONPATH": f"{source / 'src'}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, env={**os.environ, **path, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"error: {bits} in {source}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def contenders(old: Path | None) -> dict[str, tuple[str, Path, bool]]:
    """Name → bits, checkout, whether with oneDNN."""
    here = {bits: (bits, ROOT, True) for bits in CASES}
    if old is None:
        return here
    before = {"old w4a4": ("w4a4", old, True), "old w4a4, no oneDNN": ("w4a4", old, False)}
    return {**here, **before}


def summary(turns: list[dict[str, Any]], bf16: float | None) -> dict[str, Any]:
    """Of all steps of all turns; the ratio is of medians."""
    rates = [rate for turn in turns for rate in turn["tokens_per_second"]]
    median = statistics.median(rates)
    return {
        "tokens_per_second": round(median, 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "steps": len(rates),
        "of_bf16": None if bf16 is None else round(median / bf16, 3),
        "loss": turns[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="an older checkout")
    parser.add_argument("--steps", type=int, default=6, help="timed, a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instructions", nargs="+", default=list(INSTRUCTIONS))
    parser.add_argument("--output", type=Path, default=Path("train-cpu.json"))
    options = parser.parse_args()

    import torch

    from questtrain.bench.environment import environment

    command = " ".join(["python", "benchmarks/train_cpu.py", *sys.argv[1:]])
    record: dict[str, Any] = {
        "environment": environment(torch.device("cpu"), command),
        "results": {},
    }
    for instructions in options.instructions:
        cases = contenders(options.old)
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, (bits, source, onednn) in cases.items():
                variables = INSTRUCTIONS[instructions]
                turns[name].append(run_case(bits, options.steps, variables, source, onednn))
        bf16 = summary(turns["bf16"], None)["tokens_per_second"]
        of_all = {name: summary(taken, bf16) for name, taken in turns.items()}
        record["results"][instructions] = of_all
        for name, row in of_all.items():
            print(f"{instructions:5} {name:20} {row['tokens_per_second']:8.0f} {row['of_bf16']}")
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
