"""One of two ranks dies or hangs: the other names it, both end, and the run can go on.

Real processes, as srun would start them: no parent of ours and no torchrun around them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.store.checkpoint import checkpoint_folders
from tests.train.test_parallel import (
    COMMAND,
    RUN,
    ends,
    free_port,
    same_run,
    start,
    wait_until_logged,
)

PATIENCE = 6
"""Seconds; what must not be taken for a hang takes longer, and a busy machine less."""

PATCHED = """
import os, signal, sys, time
from questtrain.cli.main import main
from questtrain.train import run, trainer

original = {place}
def patched(*arguments, **keywords):
    if os.environ["RANK"] == "{rank}":
        {what}
    return original(*arguments, **keywords)

{place} = patched
sys.exit(main(["train", *sys.argv[1:]]))
"""


def patched(place: str, rank: int, what: str) -> list[str]:
    """The training command whose ``place`` first does ``what`` on one rank."""
    return [sys.executable, "-c", PATCHED.format(place=place, rank=rank, what=what)]


@pytest.fixture
def words(corpus, tmp_path) -> list[str]:
    return [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", f"train.rank_timeout={PATIENCE}"]


@pytest.fixture(scope="module")
def one(corpus, tmp_path_factory) -> Path:
    """The unbroken run of one process, in micro-batches of a rank's rows."""
    runs = tmp_path_factory.mktemp("one")
    assert main(["train", *RUN, *corpus, f"runs_dir={runs}", "name=run", "micro_batch_size=2"]) == 0
    return runs / "run"


def named(rank: int, processes: list[subprocess.Popen], what: str) -> str:
    return rf"stopped: rank {rank} of 2 \(host \S+, pid {processes[rank].pid}\) {what}"


def require_one_message(pattern: str, errors: list[str]) -> None:
    said = "".join(errors)
    assert re.search(pattern, said), said
    assert said.count("stopped: ") == 1, said
    assert "Traceback" not in said, said


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named_and_ended(one, words, tmp_path, victim) -> None:
    """SIGSTOP: within the time the other says who, and kills it, which would hold GPU and folder;
    one process goes on, to the unbroken run's bits."""
    processes = start(words)
    wait_until_logged(tmp_path / "run", 7, processes)
    processes[victim].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    codes, _, errors = ends(processes)
    assert time.monotonic() - began < 30
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 1), errors
    what = rf"gave no sign of life for {PATIENCE} s \(train.rank_timeout\)"
    require_one_message(named(victim, processes, what), errors)
    assert main(["train", *words, "micro_batch_size=2"]) == 0
    same_run(one, tmp_path / "run")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_stuck_in_a_read_says_where(words, victim) -> None:
    """Its own watch ends it, too."""
    stuck = "if arguments[1] == 9: time.sleep(600)"
    command = patched("trainer.Loader.batch", victim, stuck)
    processes = start(words, command)
    codes, _, errors = ends(processes)
    assert codes == [1, 1], errors
    what = rf"hung in a step for {PATIENCE} s \(train.rank_timeout\), in trainer.py:\d+ \("
    require_one_message(named(victim, processes, what), errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "run.prepare",
        "trainer.Trainer._save",
        "trainer.TrainingStep._backward",
        "trainer.Trainer._diagnose",
    ],
)
def test_long_work_is_no_hang(words, tmp_path, place) -> None:
    """Preparing data, saving, the first step (which compiles), a diagnosis."""
    once = f"done = {str(tmp_path / 'done')!r}; os.path.exists(done) or "
    once += f"(open(done, 'w').close(), time.sleep({2 * PATIENCE + 1}))"
    command = patched(place, 0, once)
    settings = ["train.diagnose_every=10"] if "diagnose" in place else []
    codes, _, errors = ends(start([*words, *settings], command))
    assert codes == [0, 0], errors
    assert (tmp_path / "done").exists()


@pytest.mark.slow
def test_a_pause_of_all_ranks_is_no_hang(one, words, tmp_path) -> None:
    """As when Slurm suspends a job, or a laptop's Ctrl-Z."""
    processes = start(words)
    wait_until_logged(tmp_path / "run", 3, processes)
    for number, seconds in ((signal.SIGSTOP, 2 * PATIENCE), (signal.SIGCONT, 0)):
        for process in processes:
            process.send_signal(number)
        time.sleep(seconds)
    codes, _, errors = ends(processes)
    assert codes == [0, 0], errors
    same_run(one, tmp_path / "run")


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_before_the_first_collective_of_a_step(words, victim) -> None:
    """While the other prepares data: it hears of it all the same, and does not go on for hours."""
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    other = f'elif os.environ["RANK"] == "{1 - victim}": time.sleep(600)'
    place = "run._device"
    code = PATCHED.format(place=place, rank=victim, what=die)
    code = code.replace("    return original", f"    {other}\n    return original")
    processes = start(words, [sys.executable, "-c", code])
    codes, _, errors = ends(processes)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 1), errors
    require_one_message(named(victim, processes, "died without a word"), errors)


def alone(words: list[str], rank: int, address: str, port: int) -> subprocess.Popen:
    """One rank of two, the other of which is never started."""
    world = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": address}
    environment = {**os.environ, **world, "MASTER_PORT": str(port)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *words], env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_a_rank_that_never_comes_is_named(words) -> None:
    port = free_port()
    codes, _, errors = ends([alone([*words, "train.rank_timeout=1"], 0, "127.0.0.1", port)])
    place = rf"127\.0\.0\.1:{port} \(MASTER_ADDR, MASTER_PORT\)"
    require_one_message(rf"stopped: rank 1 of 2 did not come to {place} in time", errors)
    assert codes == [1]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", pytest.param("no-such-host.invalid", marks=pytest.mark.slow)]
)
def test_a_store_that_cannot_be_reached_is_named(words, address) -> None:
    """Nothing listens there."""
    began = time.monotonic()
    codes, _, errors = ends([alone([*words, "train.rank_timeout=2"], 1, address, 9)])
    assert codes == [1]
    assert time.monotonic() - began < 30
    place = rf"could not reach the others at {address}:9 \(MASTER_ADDR, MASTER_PORT\)"
    require_one_message(rf"stopped: rank 1 of 2 \(.*\) {place} within 2 s", errors)


@pytest.mark.slow
def test_ctrl_c_while_waiting_for_the_others(words) -> None:
    """It need not wait until the time is over."""
    port = free_port()
    waiting = alone([*words, "train.rank_timeout=600"], 0, "127.0.0.1", port)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    codes, _, errors = ends([waiting])
    assert codes == [130], errors


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_a_checkpoint_is_written(one, words, tmp_path, victim) -> None:
    """Rank 0 between the checkpoint's files, or the other one then: nothing half-written counts,
    and one process ends the run with the unbroken run's bits."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    marker = f"open({str(tmp_path / 'writing')!r}, 'w').close()"
    if victim == 0:
        command = patched("checkpoint.write_json", 0, kill)
    else:
        command = patched("checkpoint.write_json", 0, f"{marker}; time.sleep(5)")
    command[2] = command[2].replace(
        "from questtrain.train", "from questtrain.store import checkpoint\nfrom questtrain.train", 1
    )
    processes = start(words, command)
    if victim == 1:
        deadline = time.monotonic() + 90
        while not (tmp_path / "writing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        processes[1].kill()
    codes, _, errors = ends(processes)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 1), errors
    require_one_message(named(victim, processes, "died without a word"), errors)
    assert len(checkpoint_folders(tmp_path / "run")) == victim
    assert main(["train", *words, "micro_batch_size=2"]) == 0
    same_run(one, tmp_path / "run")
