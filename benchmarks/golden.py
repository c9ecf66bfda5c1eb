"""Golden runs: whether a change that should change no number changes none.

    python benchmarks/golden.py record FILE [--device cuda] [--only TEXT]
    python benchmarks/golden.py compare BEFORE AFTER

``record`` trains short runs with the checkout that is on the PYTHONPATH, and writes their losses,
the SHA-256 of their weights and, for QuEST, of the logits of the model as values and as packed
codes. On a CPU: `nano`, 20 steps, every method with every format; QuEST also with micro-batches,
with packed codes kept, with fused parts compiled away, and with the plain-torch references. On a
GPU: 30M, 50 steps. ``compare`` is of two records of one machine and one torch: exit code 1 where
they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("quest", "quest-noht", "clip", "ste", "lsq", "lsq-plus", "pact")
FORMATS = (
    "w1a1", "w1.58a1.58", "w2a2", "w3a3", "w4a4", "w5a5", "w8a8", "w4a8", "w2a16", "w4a16",
    "w16a4", "wfp4afp4", "w4s24a4", "w4s24a16",
)  # fmt: skip
SHORT = (
    "model=nano", "device=cpu", "max_steps=20", "batch_size=4", "micro_batch_size=4",
    "sequence_length=64", "eval_every=20", "checkpoint_every=20", "train.validation_tokens=2048",
)  # fmt: skip
ON_GPU = (
    "model=30M", "device=cuda", "max_steps=50", "batch_size=32", "micro_batch_size=32",
    "eval_every=50", "checkpoint_every=50", "train.validation_tokens=65536",
)  # fmt: skip
SHARED = ("data=stdlib", "log_every=1", "compile=false")


def cpu_cases() -> dict[str, list[str]]:
    """Name → the settings of a run."""
    cases = {"bf16": [*SHORT, "bits=bf16"]}
    for method in METHODS:
        for bits in FORMATS:
            cases[f"{method} {bits}"] = [*SHORT, f"method={method}", f"bits={bits}"]
    for name, words in (
        ("micro-batches", ["micro_batch_size=1"]),
        ("packed", ["train.save=packed"]),
        ("grid int", ["quant.grid=int"]),
        ("autocast", ["train.autocast=bf16"]),
    ):
        for bits in ("w1a1", "w4a4", "w8a8", "w2a16", "wfp4afp4"):
            cases[f"{name} {bits}"] = [*SHORT, f"bits={bits}", *words]
    cases["fp8 w4a4"] = [*SHORT, "bits=w4a4", "train.backward=fp8"]
    cases["trust error w4a4"] = [*SHORT, "bits=w4a4", "quant.trust_error=0.3"]
    return cases


def reference_cases() -> dict[str, list[str]]:
    """`cpu_cases` of QuEST, for the plain-torch references."""
    cases = cpu_cases()
    names = [name for name in cases if name.startswith(("quest w", "micro-batches", "packed"))]
    return {f"reference {name}": cases[name] for name in names}


def gpu_cases() -> dict[str, list[str]]:
    """The same for a GPU."""
    cases = {}
    for bits in ("w4a4", "w1a1", "w8a8", "w2a16", "wfp4afp4", "bf16"):
        cases[bits] = [*ON_GPU, f"bits={bits}"]
    cases["fp8 w4a4"] = [*ON_GPU, "bits=w4a4", "train.backward=fp8"]
    cases["packed w4a4"] = [*ON_GPU, "bits=w4a4", "train.save=packed"]
    cases["micro-batches w4a4"] = [*ON_GPU, "bits=w4a4", "micro_batch_size=8"]
    cases["compiled w4a4"] = [*ON_GPU, "bits=w4a4", "compile=true"]
    return cases


def run_case(words: list[str]) -> dict[str, Any]:
    """Losses and hashes of one run, or why there is none."""
    from questtrain.cli import train
    from questtrain.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                train.main([*SHARED, *words, f"runs_dir={folder}", "name=run"])
        except UserError as error:
            return {"refused": str(error).replace(folder, "")}
        run = Path(folder) / "run"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [row.get("train_loss", row.get("val_loss")) for row in rows]
        steps = sorted((run / "checkpoints").iterdir())
        return {"losses": losses, "weights": hash_of_file(steps[-1])} | logits_of(run, words)


def hash_of_file(checkpoint: Path) -> str:
    from safetensors.torch import load_file

    return hash_of(load_file(checkpoint / "model.safetensors"))


def hash_of(tensors: dict[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def logits_of(run: Path, words: list[str]) -> dict[str, str]:
    """Hashes of the logits of fixed tokens, as values and as packed codes."""
    import torch

    import questtrain

    if any(word.startswith("method=") and word != "method=quest" for word in words):
        return {}
    device = next(word for word in words if word.startswith("device=")).partition("=")[2]
    found = {}
    for name, packed in (("logits", False), ("packed_logits", True)):
        try:
            model = questtrain.load(run, device=device, packed=packed)
        except questtrain.errors.UserError as error:
            found[name] = f"refused: {str(error).replace(str(run), '')}"
            continue
        tokens = torch.arange(64, device=device).view(2, 32) * 7 % 1000
        with torch.no_grad():
            found[name] = hash_of({"logits": model(tokens).cpu()})
    return found


def record(device: str, only: str, file: Path) -> None:
    """Run the cases in processes of their own, by backend, and write what they found."""
    groups = {"cuda": gpu_cases()} if device == "cuda" else {"": cpu_cases()}
    if device != "cuda":
        groups["reference"] = reference_cases()
    results: dict[str, Any] = {}
    for backend, cases in groups.items():
        chosen = {name: words for name, words in cases.items() if only in name}
        deterministic = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        environment = os.environ | deterministic
        if backend == "reference":
            environment["QUESTTRAIN_KERNELS_BACKEND"] = "reference"
        worker = subprocess.Popen(
            [sys.executable, __file__, "work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(chosen))
        worker.stdin.close()
        for line in worker.stdout:
            results |= json.loads(line)
            print(f"{len(results)}: {line[:100].rstrip()}", file=sys.stderr)
        if worker.wait():
            sys.exit(f"the worker ended with {worker.returncode}")
    file.write_text(json.dumps({"machine": machine(device), "runs": results}, indent=1) + "\n")


def machine(device: str) -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def work() -> None:
    """The cases of standard input, a line of JSON each. On a GPU attention adds up its gradients in
    any order unless torch is strict (`benchmarks/repeatability.py`)."""
    import torch

    torch.use_deterministic_algorithms(True)
    for name, words in json.load(sys.stdin).items():
        print(json.dumps({name: run_case(words)}), flush=True)


def compare(before: Path, after: Path) -> int:
    old, new = (json.loads(file.read_text()) for file in (before, after))
    if old["machine"] != new["machine"]:
        print(f"other machines: {old['machine']}, {new['machine']}")
    names = old["runs"].keys() | new["runs"].keys()
    different = [name for name in sorted(names) if old["runs"].get(name) != new["runs"].get(name)]
    for name in different:
        one, other = old["runs"].get(name) or {}, new["runs"].get(name) or {}
        keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        print(f"{name}: {', '.join(sorted(keys))}")
    print(f"{len(names) - len(different)} of {len(names)} runs agree")
    return 1 if different else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    recording.add_argument("--only", default="", help="cases whose name holds this text")
    comparing = actions.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    actions.add_parser("work")
    options = parser.parse_args()
    if options.action == "work":
        work()
    elif options.action == "record":
        record(options.device, options.only, options.file)
    else:
        return compare(options.before, options.after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
