"""The slurm launcher's settings, where no Slurm is needed to check them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from questtrain.cli.main import main
from questtrain.config.loading import config_from_mapping
from questtrain.errors import UserError
from questtrain.sweep.launchers.slurm import SlurmLauncher, check_sbatch, minutes
from tests.sweep.test_state import job_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("01:30:00", 90), ("24:00:00", 1440), ("2-00:00:00", 2880), ("00:00:30", 1)],
)
def test_times_as_slurm_writes_them(text, expected) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["soon", "", "0", "1:30", "00:00:00", "1-12", "-5"])
def test_what_is_no_time(text) -> None:
    with pytest.raises(UserError, match="is no time: give minutes"):
        minutes(text)


def test_a_machine_without_slurm(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch and srun; start the sweep on the cluster's"):
        SlurmLauncher().check([])


@pytest.fixture
def submitted(monkeypatch, tmp_path) -> Callable[..., str]:
    """The job script that sbatch is given; the programs of Slurm are shells that say what they
    must."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = tmp_path / "job.sh"
    said = {"sbatch": f'cp "${{@: -1}}" {script}; echo "Submitted batch job 4242"'}
    for name in ("sbatch", "srun", "squeue"):
        (programs / name).write_text(f"#!/bin/bash\n{said.get(name, 'exit 0')}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def submit(**settings) -> str:
        folder = tmp_path / "sweep"
        (folder / ".sweep").mkdir(parents=True)
        job = job_in(folder)
        launcher = SlurmLauncher(**settings)
        launcher.check([job])
        assert launcher.run([job], folder, "questtrain sweep s") is None
        return script.read_text()

    return submit


def test_a_job_script_holds_no_option_that_nobody_asked_for(submitted) -> None:
    """Clusters that check accounting keys refuse the one that submitit puts there."""
    assert "wckey" not in submitted()


def test_other_options_of_sbatch_are_handed_on(submitted) -> None:
    options = {"wckey": "ours", "mail-type": "END", "exclusive": True, "nice": 100}
    script = submitted(sbatch=options, partition="gpu")
    for line in ("wckey=ours", "mail-type=END", "exclusive", "nice=100", "partition=gpu"):
        assert f"#SBATCH --{line}\n" in script


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "gpu"}, "partition is launcher.partition: set that instead"),
        ({"ntasks-per-node": 2}, "ntasks-per-node is launcher.tasks_per_node"),
        ({"output": "x"}, "output is the launcher's own"),
        ({"--wckey": "x"}, "--wckey is no long option of sbatch"),
        ({"mail type": "x"}, "mail type is no long option"),
        ({"p": False}, "p=False: give text or a number, or true"),
        ({"comment": "a\n#SBATCH --x"}, "give text or a number"),
    ],
)
def test_what_is_no_option_of_sbatch(options, message) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_sbatch(options)


def test_options_of_sbatch_come_from_the_command_line(tmp_path, capsys) -> None:
    words = ["sweep", "smoke", "launcher=slurm", f"runs_dir={tmp_path}"]
    assert main([*words, "launcher.sbatch={partition: gpu}"]) == 2
    assert "launcher.partition: set that instead" in capsys.readouterr().err
    assert main([*words, "launcher.sbatch=gpu"]) == 2
    assert "launcher.sbatch='gpu' must be a mapping" in capsys.readouterr().err
    assert main([*words, "launcher.sbatch={a: [1]}"]) == 2
    assert "launcher.sbatch.a=[1] must be text, a number" in capsys.readouterr().err


def test_other_options_of_sbatch_are_text_numbers_or_truth_values() -> None:
    given = {"kind": "slurm", "sbatch": {"wckey": "ours", "nice": 5, "exclusive": True}}
    assert config_from_mapping(SlurmLauncher, given).sbatch == given["sbatch"]
    assert config_from_mapping(SlurmLauncher, {"kind": "slurm", "sbatch": {}}).sbatch == {}
    with pytest.raises(UserError, match=r"sbatch\.wckey is empty"):
        config_from_mapping(SlurmLauncher, {"kind": "slurm", "sbatch": {"wckey": ""}})
