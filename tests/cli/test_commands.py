"""The commands around training: help, info, doctor, completion."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from questtrain.cli.commands import COMMANDS
from questtrain.cli.completion import candidates
from questtrain.cli.main import main
from questtrain.config import TrainConfig
from questtrain.config.loading import setting_names
from questtrain.config.schema import GROUPS
from tests.training_data import questtrain


def output(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_help_lists_every_command(capsys):
    page = output(capsys, "--help")
    assert all(f"  {name}" in page for name in COMMANDS)
    assert output(capsys) == page


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_a_page(capsys, command):
    page = output(capsys, command, "--help")
    assert page.startswith(f"usage: questtrain {command}")
    assert max(map(len, page.splitlines())) <= 110


def test_train_help_names_every_top_level_setting_and_every_size(capsys):
    page = output(capsys, "train", "--help")
    top_level = {name for name in setting_names(TrainConfig) if "." not in name}
    assert all(f"\n  {name} " in page for name in {*top_level, *GROUPS})
    assert "30M, 50M, 100M, 200M, 430M, 800M, 1600M, 3200M" in " ".join(page.split())


def test_the_page_of_settings_is_up_to_date(capsys, monkeypatch):
    """docs/settings.md is made by: questtrain train --settings > docs/settings.md"""
    monkeypatch.delenv("QUESTTRAIN_CACHE", raising=False)
    page = output(capsys, "train", "--settings")
    assert all(f"\n| `{name}` | " in page for name in setting_names(TrainConfig))
    written = Path(__file__).parents[2] / "docs" / "settings.md"
    assert written.read_text(encoding="utf-8") == page


def test_help_and_info_answer_within_a_second_without_torch():
    """The slowest of three is not asked: a busy machine must not fail this."""
    for words in (["--help"], ["train", "--help"], ["info", "model=800M"]):
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            assert questtrain(*words).returncode == 0
            seconds.append(time.monotonic() - start)
        assert min(seconds) < 1.0, words
    probe = (
        "import sys; from questtrain.cli.main import main; main(['info', 'model=800M']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


def test_info_has_the_papers_numbers(capsys):
    facts = json.loads(output(capsys, "info", "model=800M", "bits=w4a4", "--json"))
    assert facts["non_embedding_params"] == 822_151_168
    assert facts["total_params"] == 822_151_168 + 2 * 32_000 * 2048
    assert facts["tokens"] == pytest.approx(80e9, rel=1e-4)
    assert facts["tokens"] == facts["steps"] * facts["batch_tokens"]
    assert facts["packed_block_bytes"] <= 0.27 * facts["bf16_block_bytes"]
    table = output(capsys, "info", "model=800M", "bits=w4a4")
    assert "822,151,168" in table


def test_info_takes_the_same_settings_as_train(capsys):
    assert main(["info", "model=110M"]) == 2
    assert "Did you mean '100M'?" in capsys.readouterr().err


def test_doctor_reports_this_machine(tmp_path):
    """Without hub and data it still says that training works, and finishes at once."""
    environment = {**os.environ, "QUESTTRAIN_CACHE": str(tmp_path)}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "CUDA_VISIBLE_DEVICES": ""}
    result = questtrain("doctor", "--json", env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert "no CUDA device" in findings["gpu"]["text"]
    assert "data=stdlib" in findings["hub"]["text"]
    assert "nothing prepared" in findings["data"]["text"]
    assert "✓ torch" in questtrain("doctor", env=environment).stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("questtrain tr", ["train "]),
        ("questtrain train model=10", ["100M "]),
        ("questtrain train bits=w1.", ["w1.58a1.58 "]),
        ("questtrain train schedule.wa", ["schedule.warmup_fraction="]),
        ("questtrain train data=s", ["stdlib "]),
        ("questtrain sweep sca", ["scaling "]),
        ("questtrain sweep scaling bits=w1.", ["w1.58a1.58 "]),
        ("questtrain generate ru", []),
    ],
)
def test_completion_candidates(line, expected):
    assert candidates(line) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_in_a_real_bash(tmp_path):
    """The printed script registers a completion that bash itself runs."""
    command = tmp_path / "questtrain"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m questtrain.cli.main "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(questtrain completion bash)"; complete -p questtrain;'
        "COMP_LINE='questtrain train model=8' COMP_POINT=24 questtrain completion query"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert "completion query" in result.stdout
    assert result.stdout.splitlines()[-1].strip() == "800M"
