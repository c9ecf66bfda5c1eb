"""One run by two processes: the same numbers as by one, one voice, and an end for all at once.

With micro_batch_size = a rank's rows, two ranks add the same two gradients that one process
accumulates, and fp32 addition of two numbers does not depend on their order: bit for bit equal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.train.parallel import World, world_from
from tests.training_data import TINY, rows

STEPS = 24
RUN = (*TINY, f"max_steps={STEPS}", "log_every=1", "eval_every=8", "checkpoint_every=5")
COMMAND = [sys.executable, "-m", "questtrain.cli.main", "train"]
WATCHED = """
import sys
from safetensors.torch import save_file
from questtrain.cli.main import main
from questtrain.train import run, trainer

class Watched(trainer.Trainer):
    def run(self):
        record = super().run()
        save_file(self.model.state_dict(), f"{self.folder}/rank{self.world.rank}.safetensors")
        return record

run.Trainer = Watched
sys.exit(main(["train", *sys.argv[1:]]))
"""

SIGNALLED = """
import os, signal, sys
from questtrain.cli.main import main
from questtrain.train import run, trainer

original = {place}
def signalled(*arguments, **keywords):
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGUSR1)
    return original(*arguments, **keywords)

{place} = signalled
sys.exit(main(["train", *sys.argv[1:]]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(words: list[str], command: list[str] = COMMAND, size: int = 2) -> list[subprocess.Popen]:
    """The processes of one run as srun would start them, without torchrun around them."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [*command, *words],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, stdout and stderr by rank; a rank that hangs is killed, and the test fails."""
    try:
        output = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return codes, [out for out, _ in output], [err for _, err in output]


def wait_until_logged(run: Path, count: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 90
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"train_loss") < count:
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.001)


def same_run(one: Path, other: Path) -> None:
    for key in ("train_loss", "grad_norm", "lr", "val_loss"):
        assert rows(one, key) == rows(other, key), key
    weights = [checkpoint_folders(run)[-1] / "model.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture(scope="module")
def one(corpus, tmp_path_factory) -> Path:
    """The run of one process, in micro-batches of two sequences."""
    runs = tmp_path_factory.mktemp("one")
    words = [*RUN, *corpus, f"runs_dir={runs}", "name=run", "micro_batch_size=2"]
    assert main(["train", *words]) == 0
    return runs / "run"


def test_torchrun_trains_one_run(one, corpus, tmp_path) -> None:
    """Rows once each, one line of output, and the losses of one process; the whole batch at once in
    that process differs from it by the order of fp32 sums only."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    result = subprocess.run(
        [*torchrun, f"--master_port={free_port()}", *COMMAND[1:], *words],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "run")]
    assert result.stderr.count("non-embedding parameters") == 1
    same_run(one, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["world_size"], record["status"]) == (2, "completed")
    assert record["batch_tokens"] == 4 * 32
    whole = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=whole"]
    assert main(["train", *whole]) == 0
    ours, theirs = (
        [loss for _, loss in rows(tmp_path / name, "train_loss")[:3]] for name in ("run", "whole")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("method", ["lsq-plus", "pact"])
def test_every_rank_holds_the_same_weights_and_scales(method, corpus, tmp_path) -> None:
    """To the last bit after eight steps, and they are those of one process."""
    words = [*RUN, *corpus, f"method={method}", "max_steps=8", "micro_batch_size=2"]
    words.append(f"runs_dir={tmp_path}")
    codes, _, errors = ends(start([*words, "name=two"], [sys.executable, "-c", WATCHED]))
    assert codes == [0, 0], errors
    assert main(["train", *words, "name=one"]) == 0
    first, second = (load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in (0, 1))
    alone = load_file(checkpoint_folders(tmp_path / "one")[-1] / "model.safetensors")
    assert [name for name in alone if name.endswith(".value")]
    for name, value in alone.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(second[name], value), name


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(one, corpus, tmp_path) -> None:
    """Rank 1 alone gets SIGTERM: both end after the same step, rank 0 has saved it and says so."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]
    processes = start(words)
    wait_until_logged(tmp_path / "run", 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, _, errors = ends(processes)
    assert codes == [128 + signal.SIGTERM] * 2, errors
    assert errors[0].count("the same command continues from here") == 1
    assert errors[1] == ""
    stopped_at = rows(tmp_path / "run", "train_loss")[-1][0]
    assert stopped_at < STEPS
    assert checkpoint_folders(tmp_path / "run")[-1].name == f"step_{stopped_at:08d}"
    assert main(["train", *words, "micro_batch_size=2"]) == 0
    same_run(one, tmp_path / "run")


def test_a_full_disk_ends_all_ranks_with_one_message(corpus, tmp_path) -> None:
    """Rank 0 alone writes; `ulimit -f` stands for the disk, the weights are larger."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}"]
    assert main(["train", *words, "name=first", "max_steps=1"]) == 0  # the data are prepared
    limited = ["bash", "-c", 'ulimit -f 60; exec "$@"', "-", *COMMAND]
    codes, _, errors = ends(start([*words, "name=run"], limited))
    assert codes == [74, 74], errors
    assert errors[0].count("step_00000005 cannot be written: File too large") == 1
    assert "Last good checkpoint: none" in errors[0]
    assert errors[1] == ""
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "place",
    ["run._device", "run.prepare", "run.Trainer.__init__", "trainer.Trainer._initialise_scales"],
)
def test_a_signal_before_the_first_step_ends_all_ranks(corpus, tmp_path, place, rank) -> None:
    """To one of them: both end with its code, and one says why."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]
    signalled = SIGNALLED.format(place=place, rank=rank)
    codes, _, errors = ends(start(words, [sys.executable, "-c", signalled]))
    assert codes == [128 + signal.SIGUSR1] * 2, errors
    assert "".join(errors).count("the same command starts again") == 1, errors
    assert "Traceback" not in "".join(errors)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_and_the_command_resumes(
    one, corpus, tmp_path, victim
) -> None:
    """kill -9: the other notices at once, says so, and two ranks finish the run exactly."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]
    processes = start(words)
    wait_until_logged(tmp_path / "run", 7, processes)
    processes[victim].kill()
    codes, _, errors = ends(processes)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1, errors
    culprit = rf"stopped: rank {victim} of 2 \(host \S+, pid {processes[victim].pid}\) died"
    assert len(re.findall(culprit, errors[1 - victim])) == 1
    assert errors[1 - victim].count("stopped: ") == 1
    assert "Traceback" not in errors[1 - victim]
    codes, _, errors = ends(start(words))
    assert codes == [0, 0], errors
    assert "resuming" in errors[0]
    same_run(one, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["data.files=nothing/*.txt"], 2, "nothing/*.txt"),  # only rank 0 looks
        (["bacth_size=4"], 2, "unknown setting 'bacth_size'"),  # both see it
        (["batch_size=5"], 2, "batch_size=5 does not divide among 2 processes; the nearest"),
        (["lr=1e30", "bits=bf16", "schedule.start_ratio=1e-33"], 1, "NaN or infinite at step"),
    ],
)
def test_one_message_and_one_exit_code(settings, code, message, corpus, tmp_path) -> None:
    """What one rank finds ends both, and is said once."""
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", *settings]
    codes, printed, errors = ends(start(words))
    assert codes == [code, code], errors
    assert errors[0].count(message) == 1
    assert "Traceback" not in errors[0]
    assert errors[1] == ""
    assert printed == ["", ""]


def test_a_world_is_what_the_environment_says() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    torchrun["MASTER_PORT"] = "29500"
    assert world_from({}) == World()
    assert world_from({**torchrun, "WORLD_SIZE": "1"}) == World()
    assert world_from(torchrun) == World(rank=3, size=4, local_rank=1)
    assert [World(rank, 4).rows(8) for rank in (0, 3)] == [slice(0, 2), slice(6, 8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "needs RANK too"),
        ({"RANK": "4"}, "RANK=4 of WORLD_SIZE=4"),
        ({"LOCAL_RANK": "one"}, "invalid literal"),
    ],
)
def test_an_impossible_environment(change, message) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    asked = {**world, "MASTER_PORT": "29500", **change}
    with pytest.raises(UserError, match=message):
        world_from({key: value for key, value in asked.items() if value is not None})
