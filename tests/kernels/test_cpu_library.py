"""The CPU's library: finding and loading it, and its environment."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.cli import doctor
from questtrain.device import cpu_instructions, cpu_name
from questtrain.errors import UserError
from questtrain.kernels import cpu_library, shared_library
from questtrain.kernels.extension import BACKEND_VARIABLE
from questtrain.kernels.library import OPS
from questtrain.kernels.shared_library import SharedLibrary
from tests.kernels.arguments import (
    SERVED_ON_CPUS,
    arguments,
)
from tests.kernels.cpu_build import build_module


@pytest.fixture
def anew(monkeypatch):
    """``anew(path, …)``: load as a process that starts with these variables; nothing is loaded."""
    loaded = []

    def load(path, isa=None, backend=None):
        loaded.clear()
        monkeypatch.setattr("torch.ops.load_library", loaded.append)
        monkeypatch.setattr(cpu_library, "_symbols", lambda path: Symbols())
        monkeypatch.setattr(cpu_library, "_found", None)
        for name, value in (
            (cpu_library.PATH_VARIABLE, str(path)),
            (cpu_library.ISA_VARIABLE, isa),
            (BACKEND_VARIABLE, backend),
        ):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return cpu_library.load(), loaded

    return load


class Symbols:
    """What a loaded library can be asked."""

    def questtrain_cpu_path(self):
        return b"portable"

    def questtrain_cpu_cap(self, name):
        return 1


def library(folder, **facts):
    """A file in place of the library, and its facts."""
    path = folder / "library.so"
    path.write_text("")
    facts = {"interface": cpu_library.INTERFACE, "compiler": "g++ 1", "source_hash": "ab", **facts}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


# ---- loading


def test_a_library_is_loaded_with_its_facts(anew, tmp_path, caplog):
    path = library(tmp_path)
    found, loaded = anew(path)
    assert found == SharedLibrary(path, compiler="g++ 1", source_hash="ab", named=True)
    assert loaded == [path]
    assert cpu_library.serves()
    assert cpu_library.serving_path() == "portable"
    assert cpu_library.load() is found
    assert not caplog.records


def test_no_library_is_not_worth_a_warning(anew, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_library, "__file__", str(tmp_path / "shared_library.py"))
    found, loaded = anew("")
    assert "questtrain_cpu.so is missing; make kernels" in found.error
    assert not loaded
    assert not cpu_library.serves()
    assert not caplog.records


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing; make kernels"),
        (lambda path: path.with_suffix(".json").unlink(), "does not load"),
        (lambda path: path.with_suffix(".json").write_text("{"), "does not load"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "does not load"),
        (
            lambda path: library(path.parent, interface=cpu_library.INTERFACE - 1),
            "another version .*make kernels",
        ),
    ],
)
def test_one_that_cannot_be_used_is_warned_of_once(anew, tmp_path, caplog, spoil, message):
    path = library(tmp_path)
    spoil(path)
    with caplog.at_level(logging.WARNING):
        found, loaded = anew(path)
        assert cpu_library.load() is found
    assert re.search(message, found.error)
    assert str(path) in found.error
    (record,) = caplog.records
    assert "the plain-torch references serve" in record.message
    assert not loaded
    assert not cpu_library.serves()


def test_a_file_that_is_no_library(anew, tmp_path, monkeypatch):
    def refuse(path):
        raise OSError("invalid ELF header")

    path = library(tmp_path)
    anew(path)
    monkeypatch.setattr("torch.ops.load_library", refuse)
    monkeypatch.setattr(cpu_library, "_found", None)
    assert "does not load: invalid ELF header" in cpu_library.load().error


@pytest.mark.parametrize("backend", ["reference", "cuda", "kuda"])
def test_other_backends_leave_it_out(anew, tmp_path, caplog, backend):
    found, loaded = anew(library(tmp_path), backend=backend)
    assert found.left_out
    assert found.error == f"{BACKEND_VARIABLE}={backend}"
    assert not loaded
    assert not caplog.records


@pytest.mark.parametrize("isa", ["avx3", "AVX2", "avx512"])
def test_an_unknown_isa_is_refused_at_every_use(anew, tmp_path, isa, monkeypatch):
    found, loaded = anew(library(tmp_path), isa=isa)
    assert found.left_out
    assert not loaded
    message = rf"unknown QUESTTRAIN_CPU_ISA '{isa}': choose from portable, avx2, avx512-vnni\."
    for use in (
        cpu_library.serves,
        lambda: torch.ops.questtrain.fp8_transpose(*arguments("fp8_transpose")),
    ):
        with pytest.raises(UserError, match=message):
            use()
    finding = doctor._cpu()
    assert finding.state == "problem"
    assert re.match(message, finding.text)


SCHEMAS_OF_INTERFACE_1 = {
    "packed_linear": "33f3ad6f",
    "int8_linear": "5a341ed1",
    "int8_offset_linear": "38706d5d",
    "unpack": "c459a4a8",
    "packed_weight_linear": "542f2522",
    "hadamard_quantize": "5f33794d",
    "hadamard_backward": "e25f6572",
    "dequantize": "94374622",
}
"""First digits of their SHA-256."""


def test_the_interface_is_raised_with_the_ops():
    """Whoever changes a schema that the library serves raises INTERFACE and kInterface, and states
    the schemas of the new one here; an op that is added joins them."""
    for op in SERVED_ON_CPUS:
        digest = hashlib.sha256(OPS[op].schema.encode()).hexdigest()
        assert digest.startswith(SCHEMAS_OF_INTERFACE_1[op]), op
    assert build_module().interface() == cpu_library.INTERFACE == 1


# ---- doctor


def test_doctor_names_the_cpu_and_what_serves(anew, tmp_path, monkeypatch):
    anew(library(tmp_path))
    finding = doctor._cpu()
    assert finding.state == "ok"
    assert finding.text.startswith(cpu_name())
    assert finding.text.endswith("integer products: library.so, portable")
    anew(tmp_path / "none.so")
    finding = doctor._cpu()
    assert finding.state == "note"
    assert "integer products: torch, fp32 products of codes (not built" in finding.text
    anew(library(tmp_path, interface=0))
    assert doctor._cpu().state == "problem"


def test_the_name_and_instructions_of_a_cpu(monkeypatch, tmp_path):
    listed = tmp_path / "cpuinfo"
    monkeypatch.setattr("questtrain.device.CPUINFO", listed)
    listed.write_text(
        "processor\t: 0\nmodel name\t: Maker  Model 7\nflags\t\t: fma avx2 avx512_vnni amx_int8\n"
        "\nprocessor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n"
    )
    assert cpu_name() == "Maker Model 7"
    assert cpu_instructions() == ["AVX2", "FMA", "AVX-512 VNNI", "AMX INT8"]
    listed.write_text("Features\t: fp asimd asimddp i8mm\n")
    assert cpu_instructions() == ["dot product", "INT8 matrix"]
    listed.unlink()
    assert cpu_name()
    assert cpu_instructions() == []


FRESH = """
import sys, questtrain.kernels
from questtrain.kernels import cpu_library
print(cpu_library.serves() and cpu_library.serving_path())
"""


@pytest.mark.parametrize("isa", ["", "portable"])
def test_in_a_fresh_process(isa):
    environment = {**os.environ, cpu_library.ISA_VARIABLE: isa}
    for name in (BACKEND_VARIABLE, cpu_library.PATH_VARIABLE):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True
    )
    built = (Path(kernels.__file__).parent / cpu_library.NAME).exists()
    expected = ["portable"] if isa else cpu_library.PATHS
    assert done.stdout.strip() in (expected if built else ["False"]), done.stderr
