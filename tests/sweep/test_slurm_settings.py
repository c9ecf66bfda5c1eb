"""The slurm launcher's settings, where no Slurm is needed to check them."""

from __future__ import annotations

import pytest

from questtrain.errors import UserError
from questtrain.sweep.launchers.config import SlurmConfig
from questtrain.sweep.launchers.slurm import check_slurm, minutes


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
        check_slurm(SlurmConfig())
