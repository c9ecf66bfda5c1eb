"""Building the CPU's library: what is compiled, for which processors, and when again."""

import json
import re
import sys

import pytest

from tests.kernels.cpu_build import ROOT, build_module


@pytest.fixture
def script(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    return build_module()


def test_no_compiler(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(script.BuildError, match=r"no C\+\+ compiler: install g\+\+ or clang\+\+"):
        script.build(tmp_path / "library.so")
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(script.BuildError, match=r"no-such-compiler cannot be run.*set CXX"):
        script.build(tmp_path / "library.so")
    assert not list(tmp_path.iterdir())


def compiler(folder, program):
    """A C++ compiler that notes what it is asked for."""
    path = folder / "compiler"
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{program}")
    path.chmod(0o755)
    return path


NOTES = """
words = sys.argv[1:]
if "--version" in words:
    sys.exit(print("compiler 1.0\\nmore"))
with Path(__file__).with_name("asked").open("a") as asked:
    asked.write(" ".join(words) + "\\n")
Path(words[words.index("-o") + 1]).write_text("made")
"""


def test_what_is_compiled_and_when(script, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(compiler(tmp_path, NOTES)))
    monkeypatch.setattr(script.platform, "machine", lambda: "x86_64")
    path, asked = tmp_path / "library.so", tmp_path / "asked"
    script.build(path)
    commands = asked.read_text().splitlines()
    assert len(commands) == len(list((ROOT / "csrc/cpu").glob("*.cpp"))) + 1
    for command in commands[:-1]:
        (source,) = re.findall(r"/(\w+)\.cpp", command)
        assert ("-mavx2" in command) == ("avx" in source)
        assert ("-mavx512vnni" in command) == ("avx512" in source)
        assert "-DTORCH_TARGET_VERSION=0x020b000000000000ULL" in command
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["compiler"] == "compiler 1.0"
    assert facts["source_hash"] == script.source_hash()
    asked.unlink()
    script.build(path)
    assert not asked.exists()
    path.with_suffix(".json").write_text("{}")
    script.build(path)
    assert asked.exists()
    assert {file.name for file in tmp_path.iterdir()} == {
        *("asked", "compiler", "library.so", "library.json")
    }


def test_other_processors_get_the_portable_path(script, monkeypatch):
    monkeypatch.setattr(script.platform, "machine", lambda: "aarch64")
    assert script.instructions("kernels_avx2.cpp") is None
    assert script.instructions("kernels_avx512.cpp") is None
    assert script.instructions("kernels_portable.cpp") == ()


def test_a_failed_compile_shows_the_command_and_keeps_the_library(script, monkeypatch, tmp_path):
    path = tmp_path / "library.so"
    path.write_text("before")
    fails = NOTES.replace(
        'Path(words[words.index("-o")', 'sys.exit("a mistake"); Path(words[words.index("-o")'
    )
    monkeypatch.setenv("CXX", str(compiler(tmp_path, fails)))
    with pytest.raises(script.BuildError, match=r"(?s)this failed:\n.*-std=c\+\+17.*a mistake"):
        script.build(path)
    assert path.read_text() == "before"
