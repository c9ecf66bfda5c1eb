"""Two launches on one run folder: the second is refused at once and told by whom, also where locks
do not reach other hosts; a holder that has died is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.store.lock_scope import Mount, mount_of
from questtrain.train import claim
from questtrain.train.claim import LOCK, OWNER, Owner, claimed
from tests.training_data import TINY, rows

HOLD = """
import sys, time
from pathlib import Path
from questtrain.train.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
ELSEWHERE = replace(Owner.this(), host="another-host", token="its own")


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder, killed at the end."""
    environment = os.environ | {"SLURM_JOB_ID": "4711"}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_owner(folder: Path, owner: Owner, age: float = 0.0) -> None:
    (folder / OWNER).write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(folder / OWNER, (then, then))


@pytest.fixture(params=["no locks", "locks of one host"])
def locks(request, monkeypatch) -> str:
    """A file system whose locks tell nothing of other hosts."""
    monkeypatch.setattr(claim, "SETTLE", 0.0)
    if request.param == "no locks":

        def unsupported(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(claim.fcntl, "flock", unsupported)
    else:
        mount = Mount("/mnt", "nfs", frozenset({"rw", "nolock"}))
        monkeypatch.setattr(claim, "mount_of", lambda folder: mount)
    return request.param


def test_a_second_process_is_refused_and_told_by_whom(tmp_path):
    with holder(tmp_path) as process:
        before = time.monotonic()
        with pytest.raises(UserError) as refused, claimed(tmp_path):
            pass
        assert time.monotonic() - before < 1
        said = str(refused.value)
        assert f"another process is training in {tmp_path}: process {process.pid} on " in said
        assert f" on {Owner.this().host}, since 20" in said
        assert said.endswith(", Slurm job 4711.")
        process.kill()
        process.wait()
        with claimed(tmp_path):
            assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_second_launch_of_a_run_and_one_after_kill_9(corpus, tmp_path, capsys):
    """Real runs: the first goes on undisturbed, and once it is killed the same command does."""
    words = [*TINY, *corpus, "bits=bf16", "log_every=1", "checkpoint_every=2", "name=run"]
    words = ["train", *words, f"runs_dir={tmp_path}", "max_steps=100000"]
    command = [sys.executable, "-m", "questtrain.cli.main", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or len(rows(tmp_path / "run", "train_loss")) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        assert main(words) == 2
        assert f"another process is training in {tmp_path}/run: process {process.pid} on " in (
            capsys.readouterr().err
        )
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    done = rows(tmp_path / "run", "train_loss")[-1][0]
    with pytest.MonkeyPatch.context() as patch:
        update = claim_steps(patch, 2)
        assert main(words) == 128 + signal.SIGTERM
    assert update[0] >= done - 2


def claim_steps(patch: pytest.MonkeyPatch, count: int) -> list[int]:
    """The run is asked to stop after ``count`` steps; the first of them."""
    from questtrain.train.trainer import Trainer

    steps: list[int] = []
    update = Trainer._update

    def updating(trainer: Trainer) -> dict:
        steps.append(trainer.step)
        if len(steps) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(trainer)

    patch.setattr(Trainer, "_update", updating)
    return steps


def test_another_host_that_gave_a_sign_is_alive(tmp_path, locks, caplog):
    write_owner(tmp_path, ELSEWHERE, age=claim.STALE - 60)
    with pytest.raises(UserError) as refused, claimed(tmp_path):
        pass
    assert str(ELSEWHERE) in str(refused.value)
    assert "Its last sign came 1" in str(refused.value)
    assert f"once {tmp_path / OWNER} is deleted" in str(refused.value)
    assert caplog.text.count("a second launch is recognised by") == 1
    assert json.loads((tmp_path / OWNER).read_text()) == asdict(ELSEWHERE)


@pytest.mark.parametrize(
    ("owner", "age"),
    [
        (ELSEWHERE, claim.STALE + 1),
        (replace(ELSEWHERE, host=Owner.this().host, started="1"), 0),
        (replace(ELSEWHERE, host=Owner.this().host, boot="before", started="1"), 0),
    ],
    ids=["silent for long", "a dead process here", "before a reboot"],
)
def test_an_owner_that_is_dead_is_in_nobodys_way(tmp_path, locks, owner, age):
    write_owner(tmp_path, owner, age)
    with claimed(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def test_an_owner_that_slurm_has_requeued_is_dead(tmp_path, locks, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    write_owner(tmp_path, replace(ELSEWHERE, slurm_job="12"))
    with pytest.raises(UserError, match="Slurm job 12"), claimed(tmp_path):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with claimed(tmp_path):
        pass


def test_a_process_of_this_host_is_seen_without_locks(tmp_path, monkeypatch, locks):
    with (
        holder(tmp_path) as process,
        pytest.raises(UserError, match=f"process {process.pid} on "),
        claimed(tmp_path),
    ):
        pass


def test_of_two_that_claim_at_once_the_first_to_write_gives_way(tmp_path, locks, monkeypatch):
    monkeypatch.setattr(claim.time, "sleep", lambda seconds: write_owner(tmp_path, ELSEWHERE))
    with pytest.raises(UserError, match="another-host"), claimed(tmp_path):
        pass
    assert json.loads((tmp_path / OWNER).read_text()) == asdict(ELSEWHERE)


def test_signs_of_life_and_a_folder_that_is_taken_over(tmp_path, locks, monkeypatch, caplog):
    """The file is written again and again; who finds another owner there stops."""
    monkeypatch.setattr(claim, "BEAT", 0.02)
    stopped = threading.Event()
    monkeypatch.setattr(claim.os, "kill", lambda pid, number: stopped.set())
    with claimed(tmp_path):
        write_owner(tmp_path, claim._read(tmp_path / OWNER), age=1000)
        deadline = time.monotonic() + 10
        while claim._age(tmp_path / OWNER) > 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.replace(written(tmp_path, ELSEWHERE), tmp_path / OWNER)
        assert stopped.wait(10)
    assert "was taken over by process" in caplog.text
    assert claim._read(tmp_path / OWNER) == ELSEWHERE


def written(folder: Path, owner: Owner) -> Path:
    path = folder / "other"
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_a_reader_of_the_lock_is_no_holder(tmp_path):
    """A sweep that looks at its runs holds their locks for an instant."""
    with (tmp_path / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.005, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with claimed(tmp_path):
            pass
        timer.join()


@pytest.mark.parametrize(
    ("kind", "options", "stay_here"),
    [
        ("ext4", "rw", False),
        ("nfs", "rw,vers=3,local_lock=none", False),
        ("nfs", "rw,vers=3,nolock,local_lock=all", True),
        ("nfs4", "rw,vers=4.2,local_lock=none", False),
        ("nfs4", "rw,vers=4.2,local_lock=flock", True),
        ("lustre", "rw,flock", False),
        ("lustre", "rw,localflock", True),
        ("cifs", "rw,nobrl", True),
        ("fuse.s3fs", "rw", True),
        ("beegfs", "rw", True),
        ("ceph", "rw", False),
    ],
)
def test_how_far_a_lock_reaches(tmp_path, kind, options, stay_here):
    folder = tmp_path / "a b" / "run"
    folder.mkdir(parents=True)
    point = str(tmp_path / "a b").replace(" ", r"\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"40 27 0:50 / {point} rw,relatime shared:5 master:1 - overlay none rw\n"
        f"41 27 0:51 / {point} rw,relatime shared:5 - {kind} server:/x {options}\n"
        f"42 27 0:52 / {point}-elsewhere rw - tmpfs none rw\n"
    )
    mount = mount_of(folder, mounts)
    assert mount is not None
    assert (mount.kind, mount.locks_stay_here) == (kind, stay_here)
    assert mount_of(folder, tmp_path / "absent") is None
