"""Builds the libraries of kernels (``make kernels``): the CPU's (build_cpu.py), and, where there is
nvcc, src/questtrain/kernels/questtrain_kernels.so.

The latter needs nvcc, CUTLASS' headers and an installed torch; no GPU. A source's name says what
it is compiled for: ``…sm90…`` for 90a only, ``…sm80…`` for the architectures below 90, any other
one for every architecture; both of these also as PTX of 80, which every GPU from sm_80 on can run.
A source with the line ``// … an object for each MACRO: values`` is compiled once for each of them,
with ``… for each 4 of MACRO: values`` once for 4 together, defined as ``MACROS``: what they share,
like CUTLASS' headers, is read once.
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
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import build_cpu
from build_cpu import STABLE_ABI, BuildError, describe, hash_of, run, torch_folder

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
    """A CUDA toolkit: its nvcc and its version."""

    nvcc: str
    version: tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One source to compile, ``instance`` telling its objects apart, or empty."""

    source: Path
    instance: str
    target: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.source.relative_to(SOURCES)} {self.instance}".strip()


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
    text = run([nvcc, "--version"])
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
    return Toolkit(nvcc, version)


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
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC", STABLE_ABI]
    torch = ["-DUSE_CUDA", f"-isystem={torch_folder() / 'include'}"]
    common = [toolkit.nvcc, *flags, *defines, *system, *torch]
    result = []
    for source in _sources():
        if source.suffix == ".cpp":
            codes = []
        elif source.suffix != ".cu" or not (codes := code_flags(source.name, architectures)):
            continue
        extra = ["-DCUTLASS_ENABLE_GDC_FOR_SM90=1"] if "sm90" in source.name else []
        command = (*common, *codes, *extra)
        result += [_job(source, name, macro, command) for name, macro in instances(source).items()]
    return sorted(result, key=lambda job: ("sm" not in job.source.name, job.name))


def instances(source: Path) -> dict[str, str]:
    """The name of each object of a source → the macro that makes it.

    ``MACRO=value`` for each value that its line ``// … an object for each MACRO: …`` lists, or the
    ``…MACRO(value, …)`` of the file that it names; ``MACROS=MACRO(value) MACRO(value)`` for each 2
    of them. Both are empty where there is no such line."""
    line = r"^//.*\ban object for each (?:(\d+) of )?(\w+): (.+)$"
    asked = re.search(line, source.read_text(), re.M | re.I)
    if not asked:
        return {"": ""}
    macro, values = asked[2], asked[3].split()
    if (listed := source.with_name(values[0])).is_file():
        values = re.findall(rf"^\w*{macro}\((\w+)", listed.read_text(), re.M)
    if not asked[1]:
        return {f"{macro}={value}": f"{macro}={value}" for value in values}
    size, result = int(asked[1]), {}
    for start in range(0, len(values), size):
        group = values[start : start + size]
        name = f"{macro}={group[0]}" + (f"+{len(group) - 1}" if len(group) > 1 else "")
        result[name] = f"{macro}S=" + " ".join(f"{macro}({value})" for value in group)
    return result


def _job(source: Path, instance: str, macro: str, command: Sequence[str]) -> Job:
    name = ".".join(part for part in (source.name, instance, "o") if part)
    target = OBJECTS / source.relative_to(SOURCES).with_name(name)
    dependencies = ["-MD", "-MF", str(target.with_suffix(".d"))]
    defines = [f"-D{macro}"] if macro else []
    compiled = ["-c", str(source), "-o", str(target)]
    return Job(source, instance, target, (*command, *defines, *dependencies, *compiled))


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
    """Of all sources and headers in csrc but the CPU's, whatever else lies there."""
    files = [file for file in _sources() if file.suffix in SUFFIXES]
    return hash_of({file.relative_to(SOURCES).as_posix(): file for file in files})


def compile_job(job: Job) -> float:
    """Seconds that it took. Raises BuildError with the compiler's words."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    stamp = job.target.with_suffix(".stamp")
    stamp.unlink(missing_ok=True)
    began, start = time.time(), time.monotonic()
    job.target.unlink(missing_ok=True)
    run(job.command, f"{job.name} does not compile")
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
    run(command, "linking failed")
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
        describe(LIBRARY, facts, time.monotonic() - start)
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
