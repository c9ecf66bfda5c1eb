"""``questtrain doctor``: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse

from questtrain.cli.arguments import parse_arguments
from questtrain.cli.output import print_json
from questtrain.config import DataConfig
from questtrain.data.records import MANIFEST
from questtrain.errors import UserError
from questtrain.process import available_cores

HELP = """usage: questtrain doctor [--json]

Checks this machine: Python and torch, CPU, GPU, compiler, kernels, hub, prepared data, disk.
Exit code 0 where training works, 1 where it does not.
"""

PACKAGES = ("hydra-core", "omegaconf", "datasets", "tokenizers", "safetensors", "wandb")
SIGNS = {"ok": "✓", "note": "·", "problem": "✗"}


@dataclass(frozen=True)
class Finding:
    """What a check found: ``state`` is ok, note (something optional is absent) or problem."""

    state: str
    text: str


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain doctor --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Show all findings; 1 where one is a problem."""
    arguments = parse_arguments(words)
    findings = examine()
    if arguments.json:
        print_json([{"what": what} | asdict(finding) for what, finding in findings.items()])
    else:
        for what, finding in findings.items():
            print(f"{SIGNS[finding.state]} {what:<10} {finding.text}")
    return int(any(finding.state == "problem" for finding in findings.values()))


def examine() -> dict[str, Finding]:
    """All findings by what they are about, in the order of what is needed first."""
    checks = (_python, _packages, _torch, _cpu, _gpu, _compiler, _kernels, _hub, _data, _disk)
    return {check.__name__.removeprefix("_"): check() for check in checks}


def _python() -> Finding:
    return Finding("ok", f"{platform.python_version()}, {available_cores()} CPU cores")


def _packages() -> Finding:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("problem", f"missing: {', '.join(missing)}; pip install them")
    return Finding("ok", ", ".join(versions))


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("problem", f"cannot be imported: {error}")
    return Finding("ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _cpu() -> Finding:
    """The CPU, what it has for products, and what does them."""
    from questtrain.device import cpu_instructions, cpu_name
    from questtrain.kernels import cpu_library

    named = ", ".join([cpu_name(), *cpu_instructions()])
    try:
        served, found = cpu_library.serves(), cpu_library.load()
    except UserError as error:
        return Finding("problem", str(error))
    if served:
        path = cpu_library.serving_path()
        return Finding("ok", f"{named}; integer products: {found.path.name}, {path}")
    broken = found.path.exists() and not found.left_out
    text = f"{named}; integer products: torch, fp32 products of codes ({found.error})"
    return Finding("problem" if broken else "note", text)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("note", "no CUDA device: training runs on the CPU, for small models")
    count = torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0)
    text = (
        f"{count} × {properties.name}, {properties.total_memory / 2**30:.0f} GiB,"
        f" compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    )
    (torch.ones(2, device="cuda") * 2).sum().item()
    return Finding("ok", text)


def _compiler() -> Finding:
    import torch

    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is not None:
        return Finding("ok", f"{compiler}: torch.compile works")
    state = "problem" if torch.cuda.is_available() else "note"
    return Finding(state, "no C++ compiler: install one, or train with compile=false")


def _kernels() -> Finding:
    import torch

    from questtrain.kernels import extension

    try:
        chosen, found = extension.backend(), extension.load()
    except UserError as error:
        return Finding("problem", str(error))
    if chosen != "auto":
        chosen += f" ({extension.BACKEND_VARIABLE})"
    if extension.backend() == "reference":
        return Finding("note", f"{chosen}: plain torch serves every device")
    if found.error is not None:
        broken = found.path.exists() and not found.left_out
        text = f"{chosen}: {found.error}; the plain-torch references serve"
        return Finding("problem" if broken else "note", text)
    built = f"{chosen}: {found.path.name} says not what it was built for"
    if found.architectures:
        built = f"{chosen}: built for {';'.join(found.architectures)} with CUDA {found.cuda}"
        if found.source_hash:
            built += f" from sources {found.source_hash[:12]}"
    if not torch.cuda.is_available():
        return Finding("ok", f"{built}; they load, but there is no GPU to run them")
    if not extension.serves("cuda"):
        return Finding("note", f"{built}; the first GPU is older than sm_80")
    return Finding("ok", f"{built}; in use on this GPU")


def _hub() -> Finding:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("note", "HF_HUB_OFFLINE is set: only what the hub cache holds")
    address = urlparse(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError as error:
        offline = "data=stdlib and data=text work without it"
        return Finding("note", f"{endpoint} is not reachable ({error}): {offline}")
    return Finding("ok", f"{endpoint} is reachable")


def _data() -> Finding:
    cache = Path(os.environ.get("QUESTTRAIN_CACHE", DataConfig.cache_dir)).expanduser()
    prepared = sorted(path.parent.name for path in cache.glob(f"*/{MANIFEST}"))
    if not prepared:
        return Finding("note", f"nothing prepared yet in {cache}")
    return Finding("ok", f"prepared in {cache}: {', '.join(prepared)}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    state = "ok" if free > 2 << 30 else "problem"
    return Finding(state, f"{free / 2**30:.0f} GiB free here")
