"""Ranks that train nothing: what they are given, how they end, and who says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from questtrain.process import ranks
from questtrain.process.ranks import RankDied, run_ranks

RANK = """
import os, signal, sys, time
from pathlib import Path
from questtrain.process.ranks import PEER_LOST, read_task
rank = int(os.environ["RANK"])
def stop(number, frame):
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
def wait_until(path):
    while not Path(path).exists():
        time.sleep(0.01)
"""


def command(code: str) -> list[str]:
    """A rank that runs ``code``."""
    return [sys.executable, "-c", RANK + code]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SECONDS_TO_END", 1.0)


def signal_when(path: Path, *numbers: int) -> threading.Thread:
    """Send this process the signals once the file is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_each_rank_gets_the_task_and_its_place(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "5")  # of another world, such as a Slurm job's
    names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    told = f"Path('{tmp_path}', str(rank)).write_text(' '.join(os.environ[n] for n in {names}))"
    task = '{"name": "ü \\n"}'
    assert run_ranks(command(f"assert read_task() == {task!r} + '\\n'; {told}"), 3, task) == 0
    said = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [(size, rank) for size, rank, *_ in said] == [("3", "0"), ("3", "1"), ("3", "2")]
    assert len({port for *_, port, _ in said}) == 1
    assert {(address, threads) for _, _, address, _, threads in said} == {("127.0.0.1", "1")}


@pytest.mark.parametrize("code", [1, 2, 74, 143])
def test_an_error_of_all_ranks_is_the_runs(code) -> None:
    assert run_ranks(command(f"read_task(); sys.exit({code})"), 2, "") == code


@pytest.mark.parametrize("other", ["time.sleep(600)", "sys.exit(PEER_LOST)"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_others_end(victim, other) -> None:
    """Those that wait for it in vain are ended; before they have read their task, too."""
    kill = f"if rank == {victim}: os.kill(os.getpid(), signal.SIGKILL)\n{other}"
    with pytest.raises(
        RankDied,
        match=rf"rank {victim} of 2 \(host .*, pid \d+\) was killed by SIGKILL: the machine",
    ):
        run_ranks(command(kill), 2, "")


def test_ranks_that_lose_each_other_are_spoken_for() -> None:
    with pytest.raises(RankDied, match=r"of 2 \(.*\) lost its connection to another") as stopped:
        run_ranks(command("sys.exit(PEER_LOST)"), 2, "")
    assert stopped.value.exit_code == 1


def test_a_rank_that_ends_with_an_error_does_not_leave_the_others_waiting() -> None:
    assert run_ranks(command("if rank == 1: sys.exit(3)\ntime.sleep(600)"), 2, "") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_ranks_that_have_hardly_begun(tmp_path, number) -> None:
    """It waits until they can answer it."""
    begun = tmp_path / "begun"
    late = f"Path('{begun}').touch(); time.sleep(0.5); read_task(); time.sleep(600)"
    sender = signal_when(begun, number)
    assert run_ranks(command(late), 2, "") == 128 + number
    sender.join()


def test_the_third_ctrl_c_kills_what_hears_nothing(tmp_path) -> None:
    begun = tmp_path / "begun"
    sender = signal_when(begun, *[signal.SIGINT] * 3)
    assert run_ranks(command(f"Path('{begun}').touch(); time.sleep(600)"), 2, "") == 130
    sender.join()


def test_ranks_do_not_outlive_their_parent(tmp_path) -> None:
    """kill -9 leaves it no time to end them: they stop as on SIGTERM."""
    note = f"read_task(); Path('{tmp_path}', f'begun{{rank}}').touch()\ntry: time.sleep(600)\n"
    note += f"finally: Path('{tmp_path}', f'ended{{rank}}').touch()"
    start = f"from questtrain.process.ranks import run_ranks; run_ranks({command(note)!r}, 2, '')"

    def wait_for(name: str) -> None:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"{name}{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with subprocess.Popen([sys.executable, "-c", start]) as parent:
        wait_for("begun")
        parent.kill()
    wait_for("ended")
