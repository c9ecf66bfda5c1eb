"""Children import nothing of the folder that they are started in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from questtrain.process.start import python_command

PLANTED = ("random", "json", "torch", "tokenizers", "signal", "questtrain", "sitecustomize")


@pytest.mark.parametrize("python_path", [None, "elsewhere"])
def test_a_child_in_a_folder_full_of_modules(tmp_path: Path, python_path: str | None) -> None:
    """It says what it has imported from there: nothing, and its own arguments arrive."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "probe.py").write_text("VALUE = 1\n")
    environment = {key: v for key, v in os.environ.items() if key != "PYTHONPATH"}
    if python_path is not None:
        environment["PYTHONPATH"] = str(elsewhere)
    command = [*python_command("questtrain.cli.main"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = command[2].replace("from questtrain.cli.main import main; sys.exit(main())", "")
    code += "import json, random, signal; print(json.dumps([sys.path, sys.argv[1:]]))"
    probe = subprocess.run(
        [sys.executable, "-c", code, "a b"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert probe.returncode == 0, probe.stderr
    path, arguments = json.loads(probe.stdout)
    assert "" not in path
    assert str(tmp_path) not in path
    assert (str(elsewhere) in path) == (python_path is not None), "what was asked for stays"
    assert arguments == ["a b"]


def test_no_child_of_ours_is_started_by_dash_m() -> None:
    """``python -m`` would put the working folder first on its path."""
    source = Path(__file__).parents[2] / "src" / "questtrain"
    wrong = [
        str(file)
        for file in source.rglob("*.py")
        if 'sys.executable, "-m"' in file.read_text(encoding="utf-8")
    ]
    assert not wrong
