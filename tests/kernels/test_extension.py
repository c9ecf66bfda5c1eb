"""Finding and loading the library; what it needs, where `make kernels` has built it."""

import json
import logging
import operator
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import questtrain.kernels
from questtrain.cli import doctor
from questtrain.kernels import extension, shared_library
from questtrain.kernels.library import OPS
from questtrain.kernels.shared_library import SharedLibrary
from tests.kernels.arguments import WITHOUT_CUDA

LIBRARY = Path(questtrain.kernels.__file__).parent / extension.NAME

built = pytest.mark.skipif(not LIBRARY.exists(), reason="needs `make kernels`")


@pytest.fixture
def anew(monkeypatch):
    """``anew(path)``: load as a process would that starts with this QUESTTRAIN_KERNELS_LIBRARY."""

    def load(path):
        extension._say.cache_clear()
        monkeypatch.delenv(extension.BACKEND_VARIABLE, raising=False)
        monkeypatch.setattr(extension, "_found", None)
        monkeypatch.setenv(extension.PATH_VARIABLE, str(path))
        return extension.load()

    return load


def test_a_library_that_is_not_built(anew, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = anew(tmp_path / "missing.so")
    assert not found.loaded
    assert "make kernels" in found.error
    assert "missing.so" in caplog.text  # it was asked for by name
    assert not extension.serves("cuda")


def test_no_library_at_all_is_not_worth_a_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(extension, "_found", None)
    monkeypatch.delenv(extension.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(shared_library, "__file__", str(tmp_path / "shared_library.py"))
    with caplog.at_level(logging.WARNING):
        assert not extension.load().loaded
    assert not caplog.records


def test_a_file_that_is_no_library_says_why(anew, tmp_path, caplog):
    broken = tmp_path / "broken.so"
    broken.write_text("nothing")
    with caplog.at_level(logging.WARNING):
        found = anew(broken)
    assert "does not load" in found.error
    assert str(broken) in caplog.text


def test_it_is_looked_for_once(anew, tmp_path):
    first = anew(tmp_path / "missing.so")
    (tmp_path / "missing.so").write_text("nothing")
    assert extension.load() is first


def test_it_serves_gpus_from_sm_80_on(monkeypatch):
    monkeypatch.setattr(extension, "_found", SharedLibrary(Path("library.so")))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, served in (((7, 5), False), ((8, 0), True), ((8, 6), True), ((12, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, c=capability: c)
        assert extension.serves("cuda") == served
    assert not extension.serves("cpu")


@built
def test_the_built_library_loads_and_brings_every_op(anew, tmp_path):
    found = extension.load()
    assert found.error is None
    assert found.architectures
    assert re.fullmatch(r"\d+\.\d+", found.cuda)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = {op for op in OPS if not has_kernel(f"questtrain::{op}", "CUDA")}
    assert missing == set(WITHOUT_CUDA)


@built
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_needs_no_cuda_and_knows_no_folder():
    """It loads on CPU-only torch, and was not tied to where it was built."""
    listed = subprocess.run(
        ["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", listed))
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or "python" in name]
    assert "RPATH" not in listed
    assert "RUNPATH" not in listed


@built
def test_the_facts_beside_the_library_are_those_of_the_build():
    facts = json.loads(LIBRARY.with_suffix(".json").read_text())
    found = extension.load()
    assert tuple(facts["architectures"]) == found.architectures
    assert facts["cuda"] == found.cuda
    assert facts.get("source_hash") == found.source_hash


def finding(monkeypatch, found, capability=None):
    """Doctor's line for a library, with a GPU of this capability or none."""
    monkeypatch.setattr(extension, "_found", found)
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    line = doctor._kernels()
    return line.state, line.text


def test_doctor_on_kernels(monkeypatch, tmp_path):
    present = tmp_path / "library.so"
    present.write_text("")
    loaded = SharedLibrary(present, ("80", "90a"), "13.0")
    built_for = "built for 80;90a with CUDA 13.0"
    assert finding(monkeypatch, loaded, (9, 0)) == ("ok", f"auto: {built_for}; in use on this GPU")
    assert finding(monkeypatch, loaded, (7, 5))[0] == "note"
    assert "no GPU to run them" in finding(monkeypatch, loaded)[1]
    hashed = SharedLibrary(present, ("80",), "13.0", "0123456789abcdef" * 4)
    assert "CUDA 13.0 from sources 0123456789ab; in use" in finding(monkeypatch, hashed, (9, 0))[1]
    unrecorded = SharedLibrary(present)
    assert "says not what it was built for; in use" in finding(monkeypatch, unrecorded, (9, 0))[1]
    missing = SharedLibrary(tmp_path / "none.so", error="not built (make kernels builds it)")
    state, text = finding(monkeypatch, missing, (9, 0))
    assert state == "note"
    assert "make kernels" in text
    assert "references serve" in text
    broken = SharedLibrary(present, error="library.so does not load: why")
    assert finding(monkeypatch, broken)[0] == "problem"
    too_old = SharedLibrary(present, error="they need a newer GPU", left_out=True)
    assert finding(monkeypatch, too_old, (7, 5))[0] == "note"


def test_doctor_says_which_backend_is_chosen(monkeypatch, tmp_path):
    loaded = SharedLibrary(tmp_path / "library.so", ("90a",), "13.0")
    missing = SharedLibrary(tmp_path / "none.so", error="not built")
    monkeypatch.setenv(extension.BACKEND_VARIABLE, "cuda")
    text = f"cuda ({extension.BACKEND_VARIABLE}): built for 90a with CUDA 13.0; in use on this GPU"
    assert finding(monkeypatch, loaded, (9, 0)) == ("ok", text)
    text = f"{extension.BACKEND_VARIABLE}=cuda: not built."
    assert finding(monkeypatch, missing, (9, 0)) == ("problem", text)
    monkeypatch.setenv(extension.BACKEND_VARIABLE, "reference")
    text = f"reference ({extension.BACKEND_VARIABLE}): plain torch serves every device"
    assert finding(monkeypatch, None) == ("note", text)
    monkeypatch.setenv(extension.BACKEND_VARIABLE, "auot")
    state, text = finding(monkeypatch, loaded, (9, 0))
    assert state == "problem"
    assert "Did you mean 'auto'?" in text


def test_never_compiled_runs_as_it_is_in_a_compiled_caller():
    """Once for each call, between two graphs, and not one operation of it in them."""
    compiling = []

    @extension.never_compiled
    def doubled(x):
        compiling.append(torch.compiler.is_compiling())
        return 2 * x

    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(lambda x: doubled(x + 1) - 1, backend=backend)
    x = torch.arange(3.0)
    for _ in range(2):
        assert torch.equal(compiled(x), 2 * (x + 1) - 1)
    assert compiling == [False, False]
    assert graphs == [[operator.add], [operator.sub]]
