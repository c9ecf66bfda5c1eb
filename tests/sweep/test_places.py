"""Which run goes where: GPUs by memory, CPU cores by threads, and the estimate's numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from questtrain.config.gpus import PEAK_BF16_FLOPS, peak_bf16_flops
from questtrain.config.ranges import check_fields
from questtrain.errors import UserError
from questtrain.process import available_cores
from questtrain.sweep.estimate import ASSUMED_MFU, choose_speed
from questtrain.sweep.launchers.local import LocalLauncher, own_words
from questtrain.sweep.machine import visible_gpus
from tests.sweep.test_state import RECORD, job_in, outcome, write

GIB = 2**30


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an `nvidia-smi` that prints these rows on the path."""

    def install(*rows: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


TWO = ("0, GPU-aa, NVIDIA A100-SXM4-80GB, 81920, 1024", "1, GPU-bb, NVIDIA H100 80GB, 81920, 0")


def test_gpus_are_read_and_hidden_ones_left_out(smi, monkeypatch):
    smi(*TWO, "2, GPU-cc, broken [N/A], [N/A], [N/A]")
    assert [(gpu.index, gpu.free_bytes // GIB) for gpu in visible_gpus()] == [(0, 79), (1, 80)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert [gpu.index for gpu in visible_gpus()] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_runs_share_a_gpu_as_far_as_its_memory_goes(smi, tmp_path):
    """30 GiB and a context each: two fit into 0.9 · 80 GiB, the third does not."""
    smi(*TWO)
    jobs = [replace(job_in(tmp_path, f"r{i}"), memory_bytes=30 * GIB) for i in range(5)]
    places = LocalLauncher().places(jobs)
    taken = [places.take(job) for job in jobs]
    assert [place and place.environment["CUDA_VISIBLE_DEVICES"] for place in taken] == [
        *("0", "1", "0", "1"),
        None,
    ]
    taken[1].running.remove(jobs[1])
    assert places.take(jobs[4]) is taken[1]


def test_a_run_too_large_by_the_estimate_has_a_gpu_of_its_own(smi, tmp_path):
    smi(TWO[0])
    large, small = replace(job_in(tmp_path), memory_bytes=200 * GIB), job_in(tmp_path, "small")
    places = LocalLauncher().places([large, small])
    assert places.take(large) is not None
    assert places.take(small) is None


def test_small_runs_are_four_a_gpu_unless_another_number_is_given(smi, tmp_path):
    smi(TWO[1])
    jobs = [job_in(tmp_path, f"r{i}") for i in range(8)]
    for config, expected in (
        (LocalLauncher(), 4),
        (LocalLauncher(runs_per_gpu=6), 6),
        (LocalLauncher(runs_per_gpu=1), 1),
        (LocalLauncher(workers=2), 2),
    ):
        places = config.places(jobs)
        assert sum(places.take(job) is not None for job in jobs) == expected


def test_cpu_slots_are_cores_by_threads(smi, tmp_path):
    """Without a GPU, and where every run asks for the CPU."""
    smi(*TWO)
    jobs = [replace(job_in(tmp_path, f"r{i}"), words=("device=cpu",)) for i in range(99)]
    for config, expected in (
        (LocalLauncher(), available_cores()),
        (LocalLauncher(threads=10**6), 1),
        (LocalLauncher(workers=7), 7),
    ):
        places = config.places(jobs)
        taken = [place for job in jobs if (place := places.take(job))]
        assert len(taken) == expected
        assert taken[0].threads == config.threads
        assert taken[0].environment == {}


def test_a_run_on_cpus_keeps_its_number_of_threads(smi, tmp_path):
    """Its sums depend on it; a number among the sweep's own words wins over the launcher's."""
    smi()
    job = job_in(tmp_path)
    place = LocalLauncher(threads=2).places([job]).take(job)
    assert own_words(job, place) == ("train.threads=2",)
    write(job.attempt_file, outcome(143) | {"extra": ["train.threads=1"]})
    assert own_words(job, place) == ("train.threads=1",)
    given = replace(job, words=("train.threads=3",))
    assert own_words(given, place) == ()


def test_mistakes_in_places(smi, tmp_path):
    smi(*TWO)
    job = replace(job_in(tmp_path), words=("device=cuda:1",))
    with pytest.raises(UserError, match=r"launcher\.gpus=\[1\] keeps to that one"):
        LocalLauncher().places([job])
    job = replace(job_in(tmp_path), words=("gpus=2",))
    with pytest.raises(UserError, match=r"gpus=2: launcher=local gives each run one GPU"):
        LocalLauncher().places([job])
    with pytest.raises(UserError, match=r"there is no GPU 7; visible: 0, 1\."):
        LocalLauncher(gpus=[7]).places([job_in(tmp_path)])
    with pytest.raises(UserError, match=r"launcher\.workers=0 must be at least 1"):
        check_fields(LocalLauncher(workers=0), "launcher.")


def test_the_speed_is_given_measured_or_assumed(smi, tmp_path):
    smi()
    sweep = tmp_path / "sweep"
    jobs = [job_in(sweep, "a", 9.89e15), job_in(sweep, "b", model="50M")]
    assumed = choose_speed(jobs, None, None)
    assert (assumed.gpu, assumed.mfu) == ("H100", ASSUMED_MFU)
    assert "an assumption" in assumed.source
    assert assumed.gpu_hours(jobs[0]) == pytest.approx(9.89e15 / (989e12 * 0.4) / 3600)
    given = choose_speed(jobs, 0.5, "a100")
    assert (given.gpu, given.peak, given.mfu) == ("A100", 312e12, 0.5)
    write(tmp_path / "other" / "run" / "run.json", RECORD | {"mfu": 0.2})
    assert choose_speed(jobs, None, None).gpu_hours(jobs[0]) == pytest.approx(
        9.89e15 / (989e12 * 0.2) / 3600
    )
    write(jobs[0].run_file, RECORD | {"mfu": 0.3})
    measured = choose_speed(jobs, None, None)
    assert "measured" in measured.source
    assert measured.mfu_of_model == {"30M": 0.3}


def test_the_machines_gpu_counts_and_mistakes_are_said(smi, tmp_path):
    smi(*TWO)
    jobs = [job_in(tmp_path)]
    assert choose_speed(jobs, None, None).peak == PEAK_BF16_FLOPS["A100"]
    assert peak_bf16_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16_flops("CPU") is None
    with pytest.raises(UserError, match=r"unknown gpu 'H10': .*Did you mean"):
        choose_speed(jobs, None, "H10")


def test_records_that_cannot_be_read_measure_nothing(smi, tmp_path: Path):
    smi()
    jobs = [job_in(tmp_path / "sweep")]
    write(jobs[0].run_file, RECORD | {"mfu": None})
    write(tmp_path / "x" / "run.json", json.loads("[]"))
    assert choose_speed(jobs, None, None).mfu == ASSUMED_MFU
