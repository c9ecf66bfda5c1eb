"""Ranks that die or hang under what started them: our own parent (``gpus=2``) and torchrun, whose
agents may come and go."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from questtrain.cli.main import main
from tests.sweep.processes import children, wait_for
from tests.train.test_gpus import end, has_logged
from tests.train.test_parallel import COMMAND, RUN, free_port, same_run
from tests.training_data import rows

pytestmark = pytest.mark.slow

STEPS = 300
WORDS = (*RUN, f"max_steps={STEPS}", "micro_batch_size=2", "train.rank_timeout=20", "name=run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1")
ELASTIC = ("--nnodes=1:4", "--max-restarts=9", "--rdzv_backend=c10d", "--rdzv_id=run")
ENVIRONMENT = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/cluster.md
QUICK = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
SLOW = """
import os, sys, time
from questtrain.cli.main import main
from questtrain.train import trainer

original = trainer.Loader.batch
def slow(*arguments):
    if not os.path.exists({joined!r}):
        time.sleep(0.3)
    return original(*arguments)

trainer.Loader.batch = slow
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def words(corpus) -> list[str]:
    return [*WORDS, *corpus]


@pytest.fixture(scope="module")
def one(words, tmp_path_factory) -> Path:
    """The unbroken run of one process."""
    runs = tmp_path_factory.mktemp("one")
    assert main(["train", *words, f"runs_dir={runs}"]) == 0
    return runs / "run"


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_random_kills_under_gpus_lose_nothing(one, words, tmp_path) -> None:
    """Each time the culprit is named with its signal, once; in the end one process has the unbroken
    run's bits."""
    moments = random.Random(20)
    command = [*COMMAND, *words, f"runs_dir={tmp_path}", "gpus=2"]
    for kill in range(4):
        process = start(command)
        so_far = rows(tmp_path / "run", "train_loss")[-1][0] if kill else 0
        wait_for(lambda so_far=so_far: has_logged(tmp_path / "run", so_far + 7), process)
        time.sleep(moments.random() / 5)
        victim = moments.choice(children(process))
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        code, _, errors = end(process)
        assert time.monotonic() - began < 45
        assert code == 128 + signal.SIGKILL, errors
        named = rf"rank \d of 2 \(host \S+, pid {victim}\) was killed by SIGKILL"
        assert re.search(named, errors), errors
        assert errors.count("stopped: ") == 1, errors
    assert main(["train", *words, f"runs_dir={tmp_path}"]) == 0
    same_run(one, tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_under_gpus_is_named_and_ended(words, tmp_path, victim) -> None:
    command = [*COMMAND, *words, f"runs_dir={tmp_path}", "gpus=2", "train.rank_timeout=4"]
    process = start(command)
    wait_for(lambda: has_logged(tmp_path / "run", 5), process)
    stopped = sorted(children(process))[victim]
    os.kill(stopped, signal.SIGSTOP)
    code, _, errors = end(process)
    assert code == 1, errors
    assert errors.count("stopped: ") == 1, errors
    named = rf"rank {victim} of 2 \(host \S+, pid {stopped}\) gave no sign of life for 4 s"
    assert re.search(named, errors), errors
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


def test_torchrun_restarts_after_a_killed_rank(one, words, tmp_path) -> None:
    """On one machine: its agent starts both again, and they go on from the last checkpoint."""
    torchrun = [*TORCHRUN[:3], "--nproc_per_node=2", "--max-restarts=2"]
    command = [*torchrun, f"--master_port={free_port()}", *COMMAND[1:], *words]
    process = start([*command, f"runs_dir={tmp_path}"])
    wait_for(lambda: has_logged(tmp_path / "run", 23), process)
    os.kill(children(process)[1], signal.SIGKILL)
    code, _, errors = end(process)
    assert code == 0, errors
    assert "resuming" in errors
    same_run(one, tmp_path / "run")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def agents(words, tmp_path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts one more of torchrun's agents, with one rank each; what is left of them is ended."""
    port = free_port()
    meeting = (f"--rdzv_endpoint=127.0.0.1:{port}", f"--rdzv_conf={QUICK}")
    slow = [sys.executable, "-c", SLOW.format(joined=str(tmp_path / "joined"))]
    command = [*TORCHRUN, *ELASTIC, *meeting, "--no-python", *slow, *words, f"runs_dir={tmp_path}"]
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        with (tmp_path / f"{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen(command, stderr=log, text=True, env=ENVIRONMENT))
        wait_for(lambda: listens(port), started[-1])  # the first one keeps the store for all
        return started[-1]

    yield begin
    for agent in started:
        for pid in [*children(agent), agent.pid] if agent.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        agent.wait()


@pytest.mark.parametrize("with_its_rank", [True, False])
def test_torchrun_shrinks_and_grows(one, tmp_path, agents, with_its_rank) -> None:
    """Two agents; one is killed, with its rank as a machine that is lost, or alone, which leaves an
    orphan; the other goes on by itself, later with a new one. The data's order and every bit are
    those of the unbroken run."""

    def begun(processes: str, times: int) -> bool:
        said = "".join(log.read_text() for log in tmp_path.glob("*.log"))
        return said.count(f", on {processes}CPU (") >= times

    def goes_on(agent: subprocess.Popen[str]) -> None:
        run = tmp_path / "run"
        so_far = next(count for count in range(STEPS) if not has_logged(run, count + 1))
        wait_for(lambda: has_logged(run, so_far + 7), agent)

    first, second = agents(), agents()
    wait_for(lambda: begun("2 × ", 1), first)
    goes_on(first)
    alone_before = next(n for n in range(9) if not begun("", n + 1))
    for pid in [*(children(second) if with_its_rank else []), second.pid]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: begun("", alone_before + 1), first)
    goes_on(first)
    third = agents()
    wait_for(lambda: begun("2 × ", 2), first)
    (tmp_path / "joined").touch()
    assert [agent.wait(timeout=90) for agent in (first, third)] == [0, 0]
    same_run(one, tmp_path / "run")
