"""The runtime that an export is for, in a process of its own: what it imports, allocates or sets
stays there, and where it dies the export says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from questtrain.errors import TrainingStopped, UserError
from questtrain.inference.export.format import ExportFormat, Tokenizes
from questtrain.process.start import python_command

ON_A_CPU = ("onnxruntime", "openvino", "llama.cpp", "llama.cpp-f32")
"""Runtimes that are asked on a CPU alone."""


class RuntimeFailed(TrainingStopped):
    """The runtime did not answer; the message has its own last words."""


@dataclass(frozen=True)
class Answer:
    """Logits fp32 ``[T, V]`` of every prompt, and the token ids of every text, none where the
    format holds no tokenizer."""

    logits: list[Tensor]
    token_ids: list[list[int]] | None


def require(form: ExportFormat, runtime: str, device: str) -> None:
    """UserError where a package that the runtime needs is not installed, or it is not asked on such
    a device."""
    if runtime in ON_A_CPU and device != "cpu":
        raise UserError(f"format={form.name} is verified by {runtime} on a CPU alone: device=cpu.")
    missing = [name for name in form.runtimes[runtime] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"format={form.name} is verified by {runtime}, and Python finds no {missing[0]}:"
            " pip install '.[export]' in the folder of questtrain's sources, or export without"
            " that: verify=false."
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
    form: ExportFormat,
    folder: Path,
    runtime: str,
    prompts: Sequence[Tensor],
    device: str,
    texts: Sequence[str] = (),
) -> Answer:
    """What the runtime makes of every prompt ``[T]``, and of the texts."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.safetensors"), Path(scratch, "answer.safetensors")
        tensors = {str(place): prompt for place, prompt in enumerate(prompts)}
        save_file(tensors, request, metadata={"texts": json.dumps(texts)})
        words = [form.name, str(folder), runtime, device, str(request), str(answer)]
        command = [*python_command("questtrain.inference.export.runtime"), *words]
        # As many threads as here: by how many a sum is cut decides its last bits.
        threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=threads
        )
        if done.returncode or not answer.exists():
            said = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise RuntimeFailed(
                f"{runtime} did not run the exported model (exit code {done.returncode}):\n{said}"
            )
        found = load_file(answer)
    logits = [found[str(place)] for place in range(len(prompts))]
    if not isinstance(form, Tokenizes):
        return Answer(logits, None)
    return Answer(logits, [found[f"text {place}"].tolist() for place in range(len(texts))])


def main() -> int:
    """In the process of the runtime: what `ask` sends, answered."""
    from questtrain.inference.export import export_format

    name, folder, runtime, device, request, answer = sys.argv[1:]
    asked = load_file(request)
    prompts = [asked[str(place)] for place in range(len(asked))]
    with safe_open(request, "pt") as file:
        texts = json.loads(file.metadata()["texts"])
    form = export_format(name)
    with torch.no_grad():
        logits = form.logits(Path(folder), runtime, prompts, device)
        found = {str(i): each.float().contiguous() for i, each in enumerate(logits)}
    if texts and isinstance(form, Tokenizes):
        for place, ids in enumerate(form.token_ids(Path(folder), runtime, texts)):
            found[f"text {place}"] = torch.tensor(ids, dtype=torch.int64)
    save_file(found, answer)
    return 0
