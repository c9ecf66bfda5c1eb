"""The runtime that an export is for, in a process of its own: what it imports, allocates or sets
stays there, and where it dies the export says so."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from questtrain.errors import TrainingStopped, UserError
from questtrain.inference.export.format import ExportFormat
from questtrain.process.start import python_command


class RuntimeFailed(TrainingStopped):
    """The runtime did not answer; the message has its own last words."""


def require(form: ExportFormat, runtime: str) -> None:
    """UserError where a package that the runtime needs is not installed."""
    missing = [name for name in form.runtimes[runtime] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"format={form.name} is verified by {runtime}, and Python finds no {missing[0]}:"
            " pip install 'questtrain[export]', or export without that: verify=false."
        )


def versions(form: ExportFormat, runtime: str) -> dict[str, str]:
    """The versions of the packages that the runtime is made of."""
    found = {}
    for name in form.runtimes[runtime]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def ask(
    form: ExportFormat, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
) -> list[Tensor]:
    """The runtime's logits fp32 ``[T, V]`` of every prompt ``[T]``."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.safetensors"), Path(scratch, "answer.safetensors")
        save_file({str(place): prompt for place, prompt in enumerate(prompts)}, request)
        words = [form.name, str(folder), runtime, device, str(request), str(answer)]
        command = [*python_command("questtrain.inference.export.runtime"), *words]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not answer.exists():
            said = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise RuntimeFailed(
                f"{runtime} did not run the exported model (exit code {done.returncode}):\n{said}"
            )
        found = load_file(answer)
    return [found[str(place)] for place in range(len(prompts))]


def main() -> int:
    """In the process of the runtime: what `ask` sends, answered."""
    from questtrain.inference.export import export_format

    name, folder, runtime, device, request, answer = sys.argv[1:]
    asked = load_file(request)
    prompts = [asked[str(place)] for place in range(len(asked))]
    with torch.no_grad():
        logits = export_format(name).logits(Path(folder), runtime, prompts, device)
        save_file({str(i): each.float().contiguous() for i, each in enumerate(logits)}, answer)
    return 0
