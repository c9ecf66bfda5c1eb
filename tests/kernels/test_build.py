"""`make kernels` with a compiler that only notes what it is asked to compile.

The real compiler is what CI runs; here are the choices around it: for which architectures, what is
compiled again, and what a user reads when something is missing.
"""

import fcntl
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STUB = """#!{python}
import re, sys
from pathlib import Path

here = Path(__file__).resolve().parents[1]
words = sys.argv[1:]
if "--version" in words:
    sys.exit(print("Cuda compilation tools, release {release}, V{release}.88"))
target = Path(words[words.index("-o") + 1])
if "-shared" in words:
    sys.exit(target.write_text("linked") and None)
source = Path(words[words.index("-c") + 1])
with (here / "compiled").open("a") as compiled:
    compiled.write(source.name + "\\n")
text = source.read_text()
if "mistake" in text:
    sys.exit(f"{{source.name}}(1): error: a mistake")
headers = [source.parent / name for name in re.findall('#include "(.+)"', text)]
if "saved meanwhile" in text:
    headers[0].write_text("// newer than the compile")
escaped = [str(file).replace(" ", chr(92) + " ") for file in (source, *headers)]
listing = (" " + chr(92) + chr(10) + " ").join(escaped)
Path(words[words.index("-MF") + 1]).write_text(f"{{target}} : {{listing}}\\n")
target.write_text("object")
"""


class Checkout:
    """A tree with a few sources, a stub toolkit, and csrc/build.py turned on it."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.toolkit = folder, folder / "cuda"
        self.monkeypatch = monkeypatch
        for source in ("tile_sm90.cu", "tile_sm80.cu", "rows.cu", "ops.cpp"):
            self.write(f"csrc/gemm/{source}", '#include "tile.h"\n')
        self.write("csrc/gemm/tile.h", "")
        self.write("cutlass/include/cutlass/cutlass.h", "")
        self.nvcc()
        self.library = folder / "src/questtrain_kernels.so"
        self.library.parent.mkdir()
        spec = importlib.util.spec_from_file_location("kernel_build", ROOT / "csrc/build.py")
        self.build = importlib.util.module_from_spec(spec)
        monkeypatch.syspath_prepend(ROOT / "csrc")
        monkeypatch.setitem(sys.modules, "kernel_build", self.build)
        spec.loader.exec_module(self.build)
        places = {"ROOT": "", "SOURCES": "csrc", "OBJECTS": "build/kernels"}
        for name, place in places.items():
            monkeypatch.setattr(self.build, name, folder / place)
        monkeypatch.setattr(self.build, "LIBRARY", self.library)
        self.cpu = []
        monkeypatch.setattr(self.build.build_cpu, "build", lambda **how: self.cpu.append(how))
        for name in ("CUDA_PATH", "ARCHS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("CUDA_HOME", str(self.toolkit))
        monkeypatch.setenv("CUTLASS_PATH", str(folder / "cutlass"))

    def write(self, name, text):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def nvcc(self, release="13.0"):
        stub = self.write("cuda/bin/nvcc", STUB.format(python=sys.executable, release=release))
        stub.chmod(0o755)

    def run(self, *words):
        """Exit code of the command, and the sources it compiled."""
        log = self.toolkit / "compiled"
        log.unlink(missing_ok=True)
        code = self.build.main(words or ("--archs", "80;89;90a"))
        return code, sorted(log.read_text().split()) if log.exists() else []


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    return Checkout(tmp_path / "a checkout", monkeypatch)


EVERYTHING = ["ops.cpp", "rows.cu", "tile_sm80.cu", "tile_sm90.cu"]


def test_the_library_and_its_facts(checkout, capsys):
    assert checkout.run() == (0, EVERYTHING)
    assert checkout.library.read_text() == "linked"
    facts = json.loads(checkout.library.with_suffix(".json").read_text())
    assert facts == {
        "architectures": ["80", "89", "90a"],
        "cuda": "13.0",
        "source_hash": checkout.build.source_hash(),
    }
    out = capsys.readouterr().out
    assert "4 of 4 sources to compile" in out
    assert re.search(r"\[ 4/4\] gemm/\S+  \d+ s\n", out)
    assert re.search(r"src/questtrain_kernels\.so: \d\.\d MiB, \d+ s\n", out)


def test_the_hash_of_the_sources(checkout, capsys, tmp_path, monkeypatch):
    """Of names and contents, wherever the tree lies; --source-hash prints it."""
    before = checkout.build.source_hash()
    checkout.write("csrc/README.md", "words")
    checkout.write("csrc/__pycache__/build.pyc", "")
    assert checkout.run("--source-hash") == (0, [])
    assert capsys.readouterr().out == f"{before}\n"
    elsewhere = shutil.copytree(checkout.folder / "csrc", tmp_path / "copy")
    monkeypatch.setattr(checkout.build, "SOURCES", elsewhere)
    assert checkout.build.source_hash() == before
    (elsewhere / "gemm/tile.h").write_text("// changed")
    changed = checkout.build.source_hash()
    (elsewhere / "gemm/tile.h").rename(elsewhere / "gemm/other.h")
    assert len({before, changed, checkout.build.source_hash()}) == 3


def test_what_has_not_changed_is_not_compiled_again(checkout):
    checkout.run()
    assert checkout.run() == (0, [])
    checkout.write("csrc/gemm/rows.cu", '#include "tile.h"\n// changed\n')
    assert checkout.run() == (0, ["rows.cu"])
    checkout.write("csrc/gemm/tile.h", "// changed")
    assert checkout.run() == (0, EVERYTHING)
    checkout.write("csrc/gemm/tile.h", "// changed")  # touched, the same content
    assert checkout.run() == (0, [])


def test_an_object_for_each_value_that_a_source_asks_for(checkout):
    """In the source, or in the file that it names; a new one is compiled alone."""
    checkout.write("csrc/rows.cu", "// What it is.\n//\n// An object for each BITS: 1 2\n")
    checkout.write("csrc/gemm/tile_sm90.cu", "// Tiles, an object for each TILE: tiles.inc\n")
    listed = checkout.write("csrc/gemm/tiles.inc", "NUMBERED_TILE(a, 1)\nOTHER_TILE(b, 2)\n")
    jobs = checkout.build.jobs(checkout.build.find_toolkit(()), ("90a",))
    several = [job for job in jobs if job.instance]
    assert [job.name for job in several] == [
        "gemm/tile_sm90.cu TILE=a",
        "gemm/tile_sm90.cu TILE=b",
        "rows.cu BITS=1",
        "rows.cu BITS=2",
    ]
    assert all(f"-D{job.instance}" in job.command for job in several)
    assert len({job.target for job in jobs}) == len(jobs)
    everything = ["ops.cpp", "rows.cu", "rows.cu", "rows.cu", "tile_sm80.cu"]
    assert checkout.run() == (0, [*everything, "tile_sm90.cu", "tile_sm90.cu"])
    listed.write_text(listed.read_text() + "OTHER_TILE(c, 3)\n")
    assert checkout.run() == (0, ["tile_sm90.cu"])


def test_an_object_for_several_values_together(checkout):
    """As CUTLASS' tiles are: its headers cost as much as a tile. The last object may have fewer."""
    checkout.write("csrc/gemm/tile_sm90.cu", "// Tiles, an object for each 2 of TILE: tiles.inc\n")
    checkout.write(
        "csrc/gemm/tiles.inc", "NUMBERED_TILE(a, 1)\nOTHER_TILE(b, 2)\nOTHER_TILE(c, 3)\n"
    )
    jobs = checkout.build.jobs(checkout.build.find_toolkit(()), ("90a",))
    several = {job.name: job.command for job in jobs if job.instance}
    assert list(several) == ["gemm/tile_sm90.cu TILE=a+1", "gemm/tile_sm90.cu TILE=c"]
    defines = [[word for word in command if "TILE" in word] for command in several.values()]
    assert [words[0] for words in defines] == ["-DTILES=TILE(a) TILE(b)", "-DTILES=TILE(c)"]
    assert checkout.run() == (
        0,
        ["ops.cpp", "rows.cu", "tile_sm80.cu", "tile_sm90.cu", "tile_sm90.cu"],
    )


def test_other_flags_and_lost_objects_compile_again(checkout):
    checkout.run()
    assert checkout.run("--archs", "80;90a") == (0, ["rows.cu", "tile_sm80.cu"])
    (checkout.folder / "build/kernels/gemm/ops.cpp.o").unlink()
    assert checkout.run("--archs", "80;90a") == (0, ["ops.cpp"])


def test_a_header_saved_during_the_compile_counts_as_changed(checkout):
    checkout.write("csrc/gemm/rows.cu", '#include "rows.h"\n// saved meanwhile\n')
    checkout.write("csrc/gemm/rows.h", "")
    assert checkout.run() == (0, EVERYTHING)
    facts = json.loads(checkout.library.with_suffix(".json").read_text())
    assert facts["source_hash"] is None
    assert checkout.run() == (0, ["rows.cu"])


def test_a_second_build_waits_for_the_first(checkout, capsys):
    lock = checkout.write("build/kernels/lock", "").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    first = threading.Timer(0.5, lock.close)
    first.start()
    assert checkout.run() == (0, EVERYTHING)
    first.join()
    assert capsys.readouterr().out.startswith("another build of the kernels is running here")


def test_a_failure_shows_the_command_and_keeps_the_other_objects(checkout, capsys):
    checkout.run()
    checkout.library.unlink()
    checkout.write("csrc/gemm/rows.cu", "mistake")
    assert checkout.run() == (2, ["rows.cu"])
    err = capsys.readouterr().err
    assert err.startswith("error: gemm/rows.cu does not compile:\n")
    assert "-gencode=arch=compute_89,code=sm_89" in err
    assert "rows.cu(1): error: a mistake" in err
    assert not checkout.library.exists()
    checkout.write("csrc/gemm/rows.cu", "")
    assert checkout.run() == (0, ["rows.cu"])


PTX = "-gencode=arch=compute_80,code=compute_80"


def sass(*architectures):
    return [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]


@pytest.mark.parametrize(
    ("name", "architectures", "expected"),
    [
        ("tile_sm90.cu", ("80", "90a"), sass("90a")),
        ("tile_sm90.cu", ("80", "89"), []),
        ("tile_sm80.cu", ("80", "89", "90a", "120"), [*sass("80", "89"), PTX]),
        ("tile_sm80.cu", ("90a",), [PTX]),
        ("rows.cu", ("80", "90a"), [*sass("80", "90a"), PTX]),
        ("rows.cu", ("120",), [*sass("120"), PTX]),
    ],
)
def test_what_a_source_is_compiled_for(checkout, name, architectures, expected):
    assert checkout.build.code_flags(name, architectures) == expected


def test_hopper_is_left_out_where_it_is_not_asked_for(checkout):
    assert checkout.run("--archs", "89") == (0, ["ops.cpp", "rows.cu", "tile_sm80.cu"])
    toolkit = checkout.build.find_toolkit(("89",))
    with_hopper = [job.command for job in checkout.build.jobs(toolkit, ("89", "90a"))]
    without = [job.command for job in checkout.build.jobs(toolkit, ("89",))]
    assert all("-DQUESTTRAIN_SM90" in command for command in with_hopper)
    assert not any("-DQUESTTRAIN_SM90" in command for command in without)


def test_the_bindings_are_compiled_for_torch_2_11(checkout):
    (command,) = [
        job.command
        for job in checkout.build.jobs(checkout.build.find_toolkit(()), ("80",))
        if job.source.suffix == ".cpp"
    ]
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000ULL" in command
    assert "-DUSE_CUDA" in command


def test_architectures_are_sorted_and_default_where_there_is_no_gpu(checkout, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert checkout.build.choose_architectures("90a, 80 89;80") == ("80", "89", "90a")
    assert checkout.build.choose_architectures(None) == ("80", "89", "90a")


def test_architectures_are_those_of_the_gpus_present(checkout, monkeypatch):
    present = [(9, 0), (8, 6), (9, 0)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(present))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: present[index])
    assert checkout.build.choose_architectures(None) == ("86", "90a")


def message(checkout, capsys, *words):
    assert checkout.run(*words) == (2, [])
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_unknown_architectures(checkout, capsys):
    err = message(checkout, capsys, "--archs", "90")
    assert "'90' is none of 80, 86, 89, 90a, 100, 120; nearest: 90a" in err
    assert "ARCHS=';' names none of 80" in message(checkout, capsys, "--archs", ";")


def test_no_nvcc(checkout, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(checkout.build.shutil, "which", lambda name: None)
    monkeypatch.setattr(checkout.build, "SYSTEM_CUDA", checkout.folder / "none")
    err = message(checkout, capsys)
    assert "no nvcc" in err
    assert "CUDA_HOME" in err


def test_without_nvcc_the_cpus_library_is_built_and_that_is_said(checkout, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(checkout.build.shutil, "which", lambda name: None)
    monkeypatch.setattr(checkout.build, "SYSTEM_CUDA", checkout.folder / "none")
    assert checkout.run("--jobs", "3") == (0, [])
    assert checkout.cpu == [{"parallel": 3}]
    assert "no nvcc (CUDA_HOME, PATH): only the CPU's library" in capsys.readouterr().out
    assert not checkout.library.exists()


def test_a_failure_of_the_cpus_library_is_one_message(checkout, capsys, monkeypatch):
    def fail(**how):
        raise checkout.build.BuildError("no C++ compiler: install one")

    monkeypatch.setattr(checkout.build.build_cpu, "build", fail)
    assert message(checkout, capsys) == "error: no C++ compiler: install one\n"


def test_the_cpus_sources_are_its_own(checkout):
    """They are neither compiled for CUDA nor part of its hash."""
    before = checkout.build.source_hash()
    checkout.write("csrc/cpu/rows_avx2.cpp", "mistake")
    assert checkout.build.source_hash() == before
    assert checkout.run() == (0, EVERYTHING)
    assert checkout.cpu == [{"parallel": None}]


def test_cuda_too_old_for_an_architecture(checkout, capsys):
    checkout.nvcc("12.2")
    assert "is CUDA 12.2; architecture 80 needs 12.5 or newer" in message(checkout, capsys)
    checkout.nvcc("12.6")
    assert "architecture 120 needs 12.8 or newer" in message(checkout, capsys, "--archs", "80 120")


def test_no_cutlass(checkout, capsys, monkeypatch):
    monkeypatch.setenv("CUTLASS_PATH", str(checkout.toolkit))
    assert "holds no include/cutlass/cutlass.h" in message(checkout, capsys)
    monkeypatch.delenv("CUTLASS_PATH")
    monkeypatch.setattr(checkout.build.importlib.util, "find_spec", lambda name: None)
    err = message(checkout, capsys)
    assert "no CUTLASS headers: pip install 'questtrain[kernels]'" in err


def test_no_torch(checkout, capsys, monkeypatch):
    monkeypatch.setattr(checkout.build.importlib.util, "find_spec", lambda name: None)
    assert "no torch" in message(checkout, capsys)
    with pytest.raises(checkout.build.BuildError, match="--no-build-isolation"):
        checkout.build.choose_architectures(None)


def test_a_compiler_that_does_not_run(checkout, capsys):
    (checkout.toolkit / "bin/nvcc").chmod(0o644)
    err = message(checkout, capsys)
    assert "bin/nvcc cannot be run: " in err
    assert "CUDA_HOME" in err


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_wrong_number_of_jobs(checkout, capsys, jobs):
    with pytest.raises(SystemExit) as stopped:
        checkout.build.main(["--jobs", jobs])
    assert stopped.value.code == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_the_package_without_nvcc_says_what_is_missing(checkout):
    """QUESTTRAIN_KERNELS=1 stops before it makes a package without kernels."""
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"QUESTTRAIN_KERNELS": "1", "ARCHS": "75", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "error: ARCHS: '75' is none of 80" in result.stderr
    assert "Traceback" not in result.stderr
