"""Builds the libraries of kernels (``make kernels``): the CPU's (build_cpu.py), and, where there is
nvcc, src/questtrain/kernels/questtrain_kernels.so.

The latter needs nvcc, CUTLASS' headers and an installed torch; no GPU. A source's name says what
it is compiled for: ``…sm90…`` for 90a only, ``…sm80…`` for the architectures below 90, any other
one for every architecture; both of these also as PTX of 80, which every GPU from sm_80 on can run.
A source with the line ``// … an object for each MACRO: values`` is compiled once for each of them.
What has not changed (command, source, headers, also those of CUDA, CUTLASS and torch) is not
compiled again.

The library uses the LibTorch Stable ABI: built with one torch, it runs with every torch from 2.11
on, and loads where torch or the machine has no CUDA.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import build_cpu
from build_cpu import STABLE_ABI, BuildError, torch_folder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"
OBJECTS = ROOT / "build" / "kernels"
LIBRARY = ROOT / "src" / "questtrain" / "kernels" / "questtrain_kernels.so"

SYSTEM_CUDA = Path("/usr/local/cuda")

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
BELOW_90 = ("80", "86", "89")
DEFAULT_ARCHITECTURES = ("80", "89", "90a")
OLDEST_CUDA = (12, 5)  # the first with mma.sp::ordered_metadata
SUFFIXES = (".cu", ".cuh", ".cpp", ".h", ".inc")
CUDA_FOR = {"100": (12, 8), "120": (12, 8)}


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its nvcc, its headers and its version."""

    nvcc: str
    include: Path
    version: tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One source to compile, ``macro`` being one of those that it asks for, or empty."""

    source: Path
    macro: str
    target: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.source.relative_to(SOURCES)} {self.macro}".strip()


def find_nvcc() -> str | None:
    """CUDA_HOME's, CUDA_PATH's, the PATH's or the usual one."""
    named = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"))
    candidates = [Path(home) / "bin" / "nvcc" for home in named if home]
    candidates += [Path(shutil.which("nvcc") or ""), SYSTEM_CUDA / "bin" / "nvcc"]
    return next((str(path) for path in candidates if path.is_file()), None)


def find_toolkit(architectures: Sequence[str]) -> Toolkit:
    """The CUDA that is found, new enough for all of them."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(
            "no nvcc: the kernels need the CUDA toolkit. Put nvcc on the PATH or set CUDA_HOME to"
            " the toolkit's folder. (Without kernels questtrain runs on plain torch.)"
        )
    text = _output([nvcc, "--version"])
    found = re.search(r"release (\d+)\.(\d+)", text)
    if not found:
        raise BuildError(f"{nvcc} --version says no release: {text.strip()[:200]}")
    version = (int(found[1]), int(found[2]))
    for architecture in architectures:
        oldest = CUDA_FOR.get(architecture, OLDEST_CUDA)
        if version < oldest:
            raise BuildError(
                f"{nvcc} is CUDA {_dotted(version)}; architecture {architecture} needs"
                f" {_dotted(oldest)} or newer."
            )
    return Toolkit(nvcc, _cuda_headers(nvcc), version)


def _cuda_headers(nvcc: str) -> Path:
    """nvcc may be a script: it knows itself where its toolkit is."""
    probe = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    top = re.search(r"^#\$ TOP=(.+)$", probe.stderr + probe.stdout, re.MULTILINE)
    homes = [Path(top[1])] if top else []
    homes.append(Path(nvcc).resolve().parents[1])
    for home in homes:
        for include in (home / "include", home / "targets" / "x86_64-linux" / "include"):
            if (include / "cuda_runtime.h").exists():
                return include.resolve()
    raise BuildError(f"the CUDA headers of {nvcc} (cuda_runtime.h) were not found; set CUDA_HOME.")


def cutlass_headers() -> tuple[Path, Path]:
    """CUTLASS' include folders, of CUTLASS_PATH or of the package nvidia-cutlass."""
    path = os.environ.get("CUTLASS_PATH")
    if path:
        home = Path(path).expanduser()
    else:
        spec = importlib.util.find_spec("cutlass_library")
        if spec is None or spec.origin is None:
            raise BuildError(
                "no CUTLASS headers: pip install 'questtrain[kernels]' (nvidia-cutlass), or set"
                " CUTLASS_PATH to a checkout of CUTLASS 4.2."
            )
        home = Path(spec.origin).parent / "source"
    if not (home / "include" / "cutlass" / "cutlass.h").exists():
        raise BuildError(f"{home} holds no include/cutlass/cutlass.h (CUTLASS_PATH={path}).")
    return home / "include", home / "tools" / "util" / "include"


def choose_architectures(asked: str | None) -> tuple[str, ...]:
    """What was asked for, else this machine's GPUs, else the default."""
    if asked:
        chosen = tuple(part for part in re.split(r"[;,\s]+", asked) if part)
        if not chosen:
            raise BuildError(f"ARCHS={asked!r} names none of {', '.join(ARCHITECTURES)}")
        for part in chosen:
            if part not in ARCHITECTURES:
                near = difflib.get_close_matches(part, ARCHITECTURES, 1, 0.0)
                raise BuildError(
                    f"ARCHS: {part!r} is none of {', '.join(ARCHITECTURES)}; nearest: {near[0]}"
                )
        return tuple(sorted(set(chosen), key=ARCHITECTURES.index))
    return _present_architectures() or DEFAULT_ARCHITECTURES


def _present_architectures() -> tuple[str, ...]:
    torch_folder()
    import torch

    if not torch.cuda.is_available():
        return ()
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    names = {f"{major}{minor}" + ("a" if major == 9 else "") for major, minor in found}
    return tuple(name for name in ARCHITECTURES if name in names)


def code_flags(name: str, architectures: Sequence[str]) -> list[str]:
    """nvcc's -gencode flags for a source; empty where it is not part of this build."""
    if "sm90" in name:
        return [_gencode("90a")] if "90a" in architectures else []
    native = [arch for arch in architectures if "sm80" not in name or arch in BELOW_90]
    return [*map(_gencode, native), "-gencode=arch=compute_80,code=compute_80"]


def _gencode(arch: str) -> str:
    return f"-gencode=arch=compute_{arch},code=sm_{arch}"


def jobs(toolkit: Toolkit, architectures: Sequence[str]) -> list[Job]:
    """CUTLASS' kernels first: they take longest."""
    defines = ["-DNDEBUG", *(["-DQUESTTRAIN_SM90"] if "90a" in architectures else [])]
    system = [f"-isystem={folder}" for folder in cutlass_headers()]
    torch = ["-DUSE_CUDA", STABLE_ABI, "-isystem", str(torch_folder() / "include")]
    cuda = [toolkit.nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC"]
    cuda += torch
    host = [*shlex.split(os.environ.get("CXX") or "g++"), "-std=c++17", "-O2", "-fPIC", "-Wall"]
    host += [f"-ffile-prefix-map={ROOT}/=", *torch, "-isystem", str(toolkit.include)]
    result = []
    for source in _sources():
        if source.suffix == ".cu":
            codes = code_flags(source.name, architectures)
            if not codes:
                continue
            extra = ["-DCUTLASS_ENABLE_GDC_FOR_SM90=1"] if "sm90" in source.name else []
            command = [*cuda, *codes, *defines, *extra, *system]
        elif source.suffix == ".cpp":
            command = [*host, *defines]
        else:
            continue
        result += [_job(source, macro, command) for macro in instances(source)]
    return sorted(result, key=lambda job: ("sm" not in job.source.name, job.name))


def instances(source: Path) -> list[str]:
    """``MACRO=value`` for each value that its line ``// … an object for each MACRO: …`` lists, or
    the ``…MACRO(value, …)`` of the file that it names; an empty one where there is no such line."""
    asked = re.search(r"^//.*\ban object for each (\w+): (.+)$", source.read_text(), re.M | re.I)
    if not asked:
        return [""]
    macro, values = asked[1], asked[2].split()
    if (listed := source.with_name(values[0])).is_file():
        values = re.findall(rf"^\w*{macro}\((\w+)", listed.read_text(), re.M)
    return [f"{macro}={value}" for value in values]


def _job(source: Path, macro: str, command: Sequence[str]) -> Job:
    name = ".".join(part for part in (source.name, macro, "o") if part)
    target = OBJECTS / source.relative_to(SOURCES).with_name(name)
    dependencies = ["-MD", "-MF", str(target.with_suffix(".d"))]
    defines = [f"-D{macro}"] if macro else []
    compiled = ["-c", str(source), "-o", str(target)]
    return Job(source, macro, target, (*command, *defines, *dependencies, *compiled))


def _sources() -> list[Path]:
    """Everything in csrc but what build_cpu builds."""
    everything = sorted(SOURCES.rglob("*"))
    return [file for file in everything if SOURCES / "cpu" not in file.parents]


def dependencies(job: Job) -> list[Path]:
    """The source and every header that its last compile read; empty before the first."""
    listing = job.target.with_suffix(".d")
    if not (job.target.exists() and listing.exists()):
        return []
    names = listing.read_text().replace("\\\n", " ").split(":", 1)[1]
    return sorted({Path(name.replace("\\ ", " ")) for name in re.findall(r"(?:\\ |\S)+", names)})


def fingerprint(job: Job) -> str | None:
    """Of the command and all that it read; None where something of that is missing."""
    files = dependencies(job)
    if not files or not all(file.exists() for file in files):
        return None
    digest = hashlib.sha256("\0".join(job.command).encode())
    for file in files:
        state = file.stat()
        digest.update(_file_digest(file, state.st_mtime_ns, state.st_size))
    return digest.hexdigest()


@functools.cache
def _file_digest(file: Path, modified: int, size: int) -> bytes:
    """Most headers are every source's; ``modified`` and ``size`` tell when to read one again."""
    return hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).digest()


def is_current(job: Job) -> bool:
    stamp = job.target.with_suffix(".stamp")
    return stamp.exists() and stamp.read_text() == fingerprint(job)


def source_hash() -> str:
    """SHA-256 over names and contents of all sources and headers in csrc but the CPU's: the same
    wherever the tree lies, whatever else lies in it."""
    files = {f.relative_to(SOURCES).as_posix(): f for f in _sources()}
    digest = hashlib.sha256()
    for name in sorted(files):
        if files[name].suffix in SUFFIXES:
            content = hashlib.sha256(files[name].read_bytes()).hexdigest()
            digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def compile_job(job: Job) -> float:
    """Seconds that it took. Raises BuildError with the compiler's words."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    stamp = job.target.with_suffix(".stamp")
    stamp.unlink(missing_ok=True)
    began, start = time.time(), time.monotonic()
    try:
        done = subprocess.run(job.command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{job.name}: {job.command[0]} cannot be run: {error}") from error
    if done.returncode:
        job.target.unlink(missing_ok=True)
        words = (done.stderr + done.stdout).strip()
        raise BuildError(f"{job.name} does not compile:\n{shlex.join(job.command)}\n{words}")
    # A file saved while the compiler ran may or may not be in the object: compile again next time.
    if all(file.stat().st_mtime < began for file in dependencies(job)):
        stamp.write_text(fingerprint(job) or "")
    return time.monotonic() - start


def compile_all(todo: Sequence[Job], parallel: int) -> None:
    """All of them, some at a time; a failure lets the others that have begun finish."""
    with ThreadPoolExecutor(parallel) as pool:
        running = {pool.submit(compile_job, job): job for job in todo}
        for count, done in enumerate(as_completed(running), 1):
            try:
                seconds = done.result()
            except BuildError:
                pool.shutdown(cancel_futures=True)
                raise
            _say(f"[{count:2}/{len(todo)}] {running[done].name}  {seconds:.0f} s")


def link(toolkit: Toolkit, objects: Sequence[Path]) -> None:
    unfinished = LIBRARY.with_suffix(".so.new")
    command = [toolkit.nvcc, "-shared", "-o", str(unfinished), *map(str, objects)]
    command += [f"-L{torch_folder() / 'lib'}", "-Xlinker", "--no-as-needed", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"linking failed:\n{shlex.join(command)}\n{done.stderr.strip()}")
    unfinished.replace(LIBRARY)


@contextmanager
def only_one_build() -> Iterator[None]:
    """Two that write the same objects would work twice, and spoil what the other links."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    with (OBJECTS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another build of the kernels is running here: waiting until it ends")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(asked: str | None = None, parallel: int | None = None) -> Path:
    """The library, built for the architectures ``asked`` for; raises BuildError."""
    architectures = choose_architectures(asked)
    toolkit = find_toolkit(architectures)
    everything = jobs(toolkit, architectures)
    parallel = parallel or len(os.sched_getaffinity(0))
    with only_one_build():
        start, sources = time.monotonic(), source_hash()
        todo = [job for job in everything if not is_current(job)]
        _say(
            f"kernels for {';'.join(architectures)}, CUDA {_dotted(toolkit.version)}:"
            f" {len(todo)} of {len(everything)} sources to compile, {parallel} at a time"
        )
        compile_all(todo, parallel)
        link(toolkit, [job.target for job in everything])
        facts = {
            "architectures": list(architectures),
            "cuda": _dotted(toolkit.version),
            "source_hash": sources if sources == source_hash() else None,  # None: saved meanwhile
        }
        LIBRARY.with_suffix(".json").write_text(json.dumps(facts) + "\n")
    size = LIBRARY.stat().st_size / 2**20
    _say(f"{LIBRARY.relative_to(ROOT)}: {size:.1f} MiB, {time.monotonic() - start:.0f} s")
    return LIBRARY


def build_all(asked: str | None = None, parallel: int | None = None) -> list[Path]:
    """The CPU's library, and CUDA's where there is nvcc or architectures were asked for."""
    if asked:
        choose_architectures(asked)
    libraries = [build_cpu.build(parallel=parallel)]
    if asked or find_nvcc():
        libraries.append(build(asked, parallel))
    else:
        _say("no nvcc (CUDA_HOME, PATH): only the CPU's library is built, no CUDA kernels")
    return libraries


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of compilers; give 1 or more")
    return int(text)


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{' '.join(command)} failed: {error}") from error


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the kernels.")
    parser.add_argument("--archs", help=f"of {';'.join(ARCHITECTURES)} (default: this GPU's)")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="the CPU's library alone; without a compiler say so and exit with 0",
    )
    parser.add_argument("--jobs", type=_positive, help="compilers at a time (default: all cores)")
    parser.add_argument(
        "--source-hash", action="store_true", help="print the hash of the sources; build nothing"
    )
    options = parser.parse_args(arguments)
    if options.source_hash:
        _say(source_hash())
        return 0
    if options.cpu:
        try:
            build_cpu.build(parallel=options.jobs)
        except BuildError as error:
            _say(f"the CPU's library is not built, plain torch serves: {error}")
        return 0
    try:
        build_all(options.archs or os.environ.get("ARCHS"), options.jobs)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
