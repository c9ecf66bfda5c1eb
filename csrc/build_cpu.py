"""Builds src/questtrain/kernels/questtrain_cpu.so, the products on a CPU (``make kernels``).

Needs a C++17 compiler (g++ or clang++) and an installed torch. The library holds every path of the
compiler's processor family and chooses among them at run time: a source's name says for which
instructions it is compiled (``…avx2…``, ``…avx512…``), any other one is for every CPU. It uses the
LibTorch Stable ABI, as the CUDA kernels do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cpu"
SHARED = [ROOT / "csrc" / name for name in ("checks.h", "formats.h", "operands.h")]
LIBRARY = ROOT / "src" / "questtrain" / "kernels" / "questtrain_cpu.so"

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"  # 2.11
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-DNDEBUG", STABLE_ABI)
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")))
X86 = ("x86_64", "amd64")


class BuildError(Exception):
    """What stands in the way of a build, for whoever started it."""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(
            "no torch: the kernels are built against its headers. pip install torch setuptools,"
            " then pip install --no-build-isolation: an isolated build does not see them."
        )
    return Path(spec.origin).parent


def find_compiler() -> list[str]:
    """CXX, or the first of the usual names; a list, for CXX may hold words."""
    named = shlex.split(os.environ.get("CXX") or "")
    if named:
        return named
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        "no C++ compiler: install g++ or clang++, or set CXX. (Without the library questtrain"
        " runs on plain torch.)"
    )


def instructions(name: str) -> tuple[str, ...] | None:
    """The flags of a source; None where this machine's processor family cannot have them."""
    wanted = AVX512 if "avx512" in name else AVX2 if "avx2" in name else ()
    return None if wanted and platform.machine().lower() not in X86 else wanted


def interface() -> int:
    """The number that ties the library to the Python side (`questtrain.kernels.cpu_library`)."""
    found = re.search(r"kInterface = (\d+);", (SOURCES / "interface.h").read_text())
    if found is None:
        raise BuildError(f"{SOURCES / 'interface.h'} states no kInterface")
    return int(found[1])


def hash_of(files: Mapping[str, Path]) -> str:
    """SHA-256 of names and contents, wherever the files lie."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def source_hash() -> str:
    """Of all sources and headers."""
    return hash_of({file.name: file for file in (*SOURCES.iterdir(), *SHARED)})


def build(library: Path | None = None, parallel: int | None = None) -> Path:
    """The library, which is not built again where nothing has changed; raises BuildError."""
    library, start = library or LIBRARY, time.monotonic()
    compiler = find_compiler()
    commands = compile_commands(compiler)
    facts = {
        "interface": interface(),
        "compiler": run([*compiler, "--version"]).splitlines()[0],
        "source_hash": source_hash(),
        "commands": hashlib.sha256(json.dumps(commands).encode()).hexdigest(),
    }
    if library.exists() and _facts(library) == facts:
        print(f"{_name(library)}: up to date", flush=True)
        return library
    unfinished = library.with_suffix(f".{os.getpid()}.new")
    try:
        _compile(compiler, commands, unfinished, parallel)
        library.with_suffix(".json").unlink(missing_ok=True)
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
    describe(library, facts, time.monotonic() - start)
    return library


def describe(library: Path, facts: Mapping[str, object], seconds: float) -> None:
    """Write a new library's facts beside it, and say that it is made."""
    library.with_suffix(".json").write_text(json.dumps(facts) + "\n")
    size = library.stat().st_size / 2**20
    print(f"{_name(library)}: {size:.1f} MiB, {seconds:.0f} s", flush=True)


def compile_commands(compiler: Sequence[str]) -> list[list[str]]:
    """One for each source that this processor family has, without the output's name."""
    common = [*compiler, *FLAGS, "-isystem", str(torch_folder() / "include")]
    return [
        [*common, *flags, "-c", str(source)]
        for source in sorted(SOURCES.glob("*.cpp"))
        if (flags := instructions(source.name)) is not None
    ]


def _compile(
    compiler: Sequence[str], commands: Sequence[Sequence[str]], output: Path, parallel: int | None
) -> None:
    """Compile some at a time, and link."""
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder, f"{number}.o")) for number in range(len(commands))]
        jobs = [[*each, "-o", to] for each, to in zip(commands, objects, strict=True)]
        with ThreadPoolExecutor(parallel or os.cpu_count()) as pool:
            list(pool.map(run, jobs))
        link = [*compiler, "-shared", "-o", str(output), *objects]
        run([*link, f"-L{torch_folder() / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"])


def _facts(library: Path) -> object:
    try:
        return json.loads(library.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return None


def _name(library: Path) -> str:
    return str(library.relative_to(ROOT) if library.is_relative_to(ROOT) else library)


def run(command: Sequence[str], failed: str = "this failed") -> str:
    """What it prints; BuildError with its words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        hint = "set CXX to a compiler, CUDA_HOME to a CUDA toolkit"
        raise BuildError(f"{command[0]} cannot be run: {error}; {hint}") from error
    if done.returncode:
        words = (done.stderr + done.stdout).strip()
        raise BuildError(f"{failed}:\n{shlex.join(command)}\n{words}")
    return done.stdout
