"""QUESTTRAIN_KERNELS_BACKEND: what is loaded, what is refused, and what the log says."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.kernels import extension
from tests.kernels.arguments import WIDTH, arguments

BUILT = Path(kernels.__file__).parent / extension.NAME

pytestmark = pytest.mark.filterwarnings("error")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def choose(monkeypatch):
    """``choose(backend, path)``: as a process that starts with these variables."""

    def start(backend, path=BUILT):
        extension._say.cache_clear()
        monkeypatch.setattr(extension, "_found", None)
        monkeypatch.setenv(extension.PATH_VARIABLE, str(path))
        monkeypatch.setenv(extension.BACKEND_VARIABLE, backend)

    return start


@pytest.fixture
def loaded(monkeypatch):
    """The paths of the libraries that are loaded, instead of loading them."""
    paths = []
    monkeypatch.setattr("torch.ops.load_library", paths.append)
    return paths


def gpus(monkeypatch, *capabilities):
    """As if these GPUs were there, and CUDA started."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.init", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(capabilities))
    monkeypatch.setattr(
        "torch.cuda.get_device_capability",
        lambda device: capabilities[device if isinstance(device, int) else device.index or 0],
    )


@pytest.fixture
def library(tmp_path):
    """A file in place of the library."""
    path = tmp_path / "library.so"
    path.write_text("")
    return path


def transpose():
    """An op that the references do on every CPU, whether its library is built or not."""
    return torch.ops.questtrain.fp8_transpose(*arguments("fp8_transpose"))


# ---- auto


def test_auto_is_the_default(monkeypatch):
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv(extension.BACKEND_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(extension.BACKEND_VARIABLE, value)
        assert extension.backend() == "auto"


def test_on_the_cpu_nothing_is_loaded(choose, loaded, library):
    choose("auto", library)
    transpose()
    assert not extension.serves("cpu")
    assert not loaded


def test_a_gpu_gets_the_library(choose, loaded, library, monkeypatch):
    choose("auto", library)
    gpus(monkeypatch, (9, 0))
    assert extension.serves(CUDA)
    assert extension.serves("cuda")
    assert loaded == [library]


def test_without_a_library_the_log_says_once_how_to_build_it(choose, tmp_path, caplog):
    choose("auto", tmp_path / "none.so")
    for op in ("unpack", "unpack", "int8_linear"):
        extension.admit_reference(op, CUDA)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "make kernels" in record.message
    assert "references serve" in record.message


def test_an_op_that_an_older_library_lacks_is_named(choose, loaded, library, caplog):
    choose("auto", library)
    extension.admit_reference("unpack", CUDA)
    assert "library.so has no unpack" in caplog.text
    choose("cuda", library)
    with pytest.raises(UserError, match="has no unpack"):
        extension.admit_reference("unpack", CUDA)


def test_gpus_that_are_too_old_get_no_library(choose, loaded, library, monkeypatch, caplog):
    choose("auto", library)
    gpus(monkeypatch, (7, 0), (7, 5))
    assert not extension.serves(CUDA)
    assert not caplog.records, "who uses no kernel need not know"
    for _ in range(2):
        extension.admit_reference("unpack", CUDA)
    (record,) = caplog.records
    assert "8.0 or newer, here is 7.5" in record.message
    assert not loaded


def test_among_gpus_of_several_ages_the_newer_ones_are_served(choose, loaded, library, monkeypatch):
    choose("auto", library)
    gpus(monkeypatch, (7, 5), (8, 6))
    assert extension.load().loaded
    assert [extension.serves(f"cuda:{index}") for index in range(2)] == [False, True]


# ---- cuda


def test_cuda_without_a_library_is_an_error_at_every_use(choose, tmp_path, caplog):
    choose("cuda", tmp_path / "none.so")
    uses = (
        extension.load,
        transpose,
        lambda: extension.serves("cpu"),
        lambda: extension.serves("cuda"),
        lambda: extension.admit_reference("unpack", CUDA),
    )
    for use in uses:
        with pytest.raises(UserError, match=r"BACKEND=cuda: not built .*none\.so.* make kernels"):
            use()
    assert not caplog.records


def test_cuda_with_a_file_that_does_not_load(choose, library):
    choose("cuda", library)
    with pytest.raises(UserError, match=r"library\.so does not load: "):
        transpose()


def test_cuda_on_gpus_that_are_too_old(choose, loaded, library, monkeypatch):
    choose("cuda", library)
    gpus(monkeypatch, (7, 5))
    with pytest.raises(UserError, match=r"here is 7\.5"):
        extension.serves(CUDA)


def test_cuda_with_a_library_leaves_the_cpu_to_the_references(choose, loaded, library):
    choose("cuda", library)
    assert transpose().shape == (WIDTH, 48)
    assert loaded == [library]


def test_at_the_command_line_it_is_one_message(choose, tmp_path, capsys):
    choose("cuda", tmp_path / "none.so")
    words = ["models=nano", "tokens=[1]", "device=cpu", "output=null", "rounds=1"]
    assert main(["bench", "layer", *words, "milliseconds=0.1"]) == 2
    assert "error: QUESTTRAIN_KERNELS_BACKEND=cuda: not built" in capsys.readouterr().err


# ---- reference


def test_reference_loads_nothing(choose, loaded, library, monkeypatch, caplog):
    choose("reference", library)
    gpus(monkeypatch, (9, 0))
    assert not extension.serves(CUDA)
    transpose()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            extension.admit_reference("unpack", CUDA)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "QUESTTRAIN_KERNELS_BACKEND=reference" in record.message
    assert not loaded


# ---- anything else


def test_an_unknown_backend_is_refused_with_the_choices(choose, capsys):
    choose("kuda")
    message = r"unknown QUESTTRAIN_KERNELS_BACKEND 'kuda': choose from auto, cuda, reference\."
    for use in (extension.load, transpose, lambda: extension.serves("cpu")):
        with pytest.raises(UserError, match=rf"{message} Did you mean 'cuda'\?"):
            use()


# ---- when


def test_the_library_waits_for_cuda(choose, loaded, library, monkeypatch):
    waiting = []
    monkeypatch.setattr("torch.cuda._lazy_call", waiting.append)
    for backend, expected in (("kuda", []), ("reference", []), ("cuda", [library])):
        choose(backend, library)
        extension.load_with_cuda()
        assert not loaded
        waiting.pop()()
        assert loaded == expected


PROGRAM = """
import torch
import questtrain.kernels
from questtrain.kernels import extension

def has_kernel():
    return torch._C._dispatch_has_kernel_for_dispatch_key("questtrain::unpack", "CUDA")

assert extension._found is None and not has_kernel()
for call, _ in torch.cuda._queued_calls:
    if call.__module__ == extension.__name__:
        call()
assert extension._found is not None
print(has_kernel())
"""


@pytest.mark.skipif(not BUILT.exists(), reason="needs `make kernels`")
@pytest.mark.parametrize(("backend", "served"), [("auto", "True"), ("reference", "False")])
def test_in_a_fresh_process(backend, served):
    """Import loads nothing; what torch runs when CUDA starts does."""
    environment = {**os.environ, extension.BACKEND_VARIABLE: backend, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop(extension.PATH_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == served, done.stderr


def test_a_compiled_function_takes_the_answer_as_a_constant():
    def run(x):
        return x + 1 if extension.serves(x.device) else x - 1

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [-1, -1]
