"""What a run does when the disk is full, a signal comes, weights are useless or a shard is damaged:
one message, the right exit code, nothing lost and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from questtrain.cli.main import main
from questtrain.config import LoggerConfig
from questtrain.data import pool, sources
from questtrain.store import checkpoint, files
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.train import run as train_run
from questtrain.train.metrics import Metrics
from questtrain.train.trainer import Trainer
from tests.training_data import TINY, rows

RUN = (*TINY, "bits=bf16", "max_steps=6", "log_every=1", "eval_every=6", "checkpoint_every=2")
LINKS = ("tokenizer.json", "figures/loss.png")
GROWING = ("lr=1e30", "schedule.start_ratio=1e-33", "max_steps=24")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def words(corpus, tmp_path) -> list[str]:
    """A run of six steps in ``tmp_path/run``."""
    return ["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run"]


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("unbroken")
    assert main(["train", *RUN, *corpus, f"runs_dir={runs}", "name=run"]) == 0
    return runs / "run"


def steps_saved(run: Path) -> list[str]:
    return [folder.name.lstrip("step_0") for folder in checkpoint_folders(run)]


def left_behind(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def same_run(one: Path, other: Path) -> None:
    for key in ("train_loss", "grad_norm", "val_loss"):
        assert rows(one, key) == rows(other, key), key
    weights = [checkpoint_folders(run)[-1] / "model.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def refuse(patch: pytest.MonkeyPatch, file: str) -> None:
    """The disk is full when ``file`` is written: the second checkpoint, or the third row."""
    replace, append, save = os.replace, files.LineFile.write, checkpoint.save_file

    def replacing(source: Path, target: Path) -> None:
        if Path(target).name == file != "metrics.jsonl":
            raise FULL
        replace(source, target)

    def appending(lines: files.LineFile, line: str) -> None:
        with files.writing(lines._path, len(line)):
            if file == "metrics.jsonl" and json.loads(line)["step"] == 3:
                raise FULL
        append(lines, line)

    def saving(tensors: dict, path: Path) -> None:
        if file == "weights" and "00000004" in str(path):
            path.write_bytes(b"half a file")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    patch.setattr(files.os, "replace", replacing)
    patch.setattr(files.LineFile, "write", appending)
    patch.setattr(checkpoint, "save_file", saving)


@pytest.mark.parametrize(
    ("file", "named", "kept"),
    [
        ("config.yaml", "config.yaml", []),
        ("tokenizer.json", "tokenizer.json", []),
        ("metrics.jsonl", "metrics.jsonl", ["2"]),
        ("weights", "step_00000004", ["2"]),
        ("checkpoint.json", "step_00000002", []),
        ("loss.png", "loss.png", ["4", "6"]),
        ("run.json", "run.json", ["4", "6"]),
    ],
)
def test_a_full_disk_is_said_once_and_the_same_command_goes_on(
    unbroken, words, tmp_path, capsys, monkeypatch, file, named, kept
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        refuse(patch, file)
        assert main(words) == 74
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped: " in line]
    assert len(said) == 1
    assert f"{named} cannot be written: No space left on device (" in said[0]
    assert "bytes are free" in said[0]
    last = f"step {kept[-1]} (" if kept else "none."
    assert f"Last good checkpoint: {last}" in said[0]
    assert "the same command goes on" in said[0]
    assert steps_saved(run) == kept
    assert left_behind(run) == []
    assert not (run / "run.json").exists()
    assert main(words) == 0
    same_run(unbroken, run)


def test_a_limit_on_file_sizes_in_a_real_process(words, tmp_path):
    """`ulimit -f`, as a shared machine sets it; the weights are larger, all else is smaller."""
    assert main([*words, "name=first", "max_steps=1"]) == 0  # the data are prepared without it
    command = ["bash", "-c", 'ulimit -f 60; exec "$@"', "-", sys.executable]
    command += ["-m", "questtrain.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr
    assert "step_00000002 cannot be written: File too large (needs " in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == []


def at_step(patch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Send this process signals while it makes a step."""
    update = Trainer._update

    def updating(trainer: Trainer) -> dict:
        if trainer.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return update(trainer)

    patch.setattr(Trainer, "_update", updating)


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGHUP,),
        (signal.SIGUSR1,),
        (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGUSR1),
    ],
)
def test_a_signal_saves_the_step_whatever_else_comes(
    unbroken, words, tmp_path, capsys, monkeypatch, numbers
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 2, *numbers)
        assert main([*words, "checkpoint_every=1000"]) == 128 + numbers[0]
    assert "stopped: saved step 3; the same command continues from here." in capsys.readouterr().err
    assert steps_saved(run) == ["3"]
    assert main(words) == 0
    same_run(unbroken, run)


def test_ctrl_c_twice_stops_at_once(words, tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 2, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert main([*words, "checkpoint_every=1000"]) == 130
    assert "stopped: at once; the steps since the last checkpoint are lost" in (
        capsys.readouterr().err
    )
    assert steps_saved(tmp_path / "run") == []


def test_under_nohup_a_hangup_changes_nothing(unbroken, words, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 2, signal.SIGHUP)
        assert main(words) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    same_run(unbroken, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["preparation", "building", "restoring"])
def test_a_signal_before_the_first_step(words, tmp_path, capsys, monkeypatch, number, moment):
    """One message, 128 + its number, and no folder of a run that never began."""
    place, name = {
        "preparation": (train_run, "prepare"),
        "building": (Trainer, "__init__"),
        "restoring": (Trainer, "_restore"),
    }[moment]
    original = getattr(place, name)

    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    monkeypatch.setattr(place, name, interrupted)
    assert main(words) == 128 + number
    said = capsys.readouterr().err
    assert said.count("stopped: ") == 1
    assert "the same command starts again" in said
    assert (tmp_path / "run").exists() == (moment != "preparation")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_workers_tokenize_leaves_no_process(
    corpus, tmp_path, capsys, monkeypatch, number
):
    started: list[subprocess.Popen] = []
    drive = pool._drive

    def driving(process, schedule, events):
        started.append(process)
        if len(started) == 2:
            os.kill(os.getpid(), number)
        drive(process, schedule, events)

    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    monkeypatch.setattr(pool, "_drive", driving)
    cache = tmp_path / "cache"
    words = ["data", "prepare", *corpus, "data.num_workers=2", f"data.cache_dir={cache}"]
    assert main(words) == 128 + number
    assert capsys.readouterr().err.count("stopped: ") == 1
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_links_in_a_run_folder_are_replaced(words, tmp_path):
    """What they point at is somebody else's."""
    targets = {name: tmp_path / name.replace("/", "-") for name in LINKS}
    for name, target in targets.items():
        target.write_text("untouched")
        link = tmp_path / "run" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    assert main(words) == 0
    for name, target in targets.items():
        assert target.read_text() == "untouched"
        assert not (tmp_path / "run" / name).is_symlink()


def test_an_error_that_a_library_makes_of_a_signal_is_none(words, capsys, monkeypatch):
    """Such as an import that fails because it was interrupted."""

    def preparing(*arguments, **keywords):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise ImportError("half imported") from None

    monkeypatch.setattr(train_run, "prepare", preparing)
    assert main(words) == 128 + signal.SIGTERM
    assert "stopped: SIGTERM; " in capsys.readouterr().err


def test_a_terminal_that_closes(words, tmp_path):
    """SIGHUP, and nothing can be printed any more: the step is saved all the same."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "questtrain.cli.main", *words, "max_steps=100000"],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )  # fmt: skip
    os.close(follower)
    os.set_blocking(leader, False)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"train_loss") < 3:
        with suppress(BlockingIOError):
            os.read(leader, 65536)
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(leader)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert steps_saved(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "good"),
    [
        (["lr=1e38", "max_steps=1"], None),
        (["lr=1e38", "max_steps=1", "checkpoint_every=1", "eval_every=1"], None),
        # The warm-up multiplies the rate tenfold a step: the second update is the fatal one, and
        # no validation is due before the checkpoint after it.
        ([*GROWING, "checkpoint_every=1", "eval_every=100"], 1),
    ],
)
def test_weights_that_an_update_has_made_useless_reach_no_checkpoint(
    words, tmp_path, capsys, settings, good
):
    """Diverged, exit 1, JSON without NaN; given again, the same is said."""
    run = tmp_path / "run"
    for _ in range(2):
        assert main([*words, *settings]) == 1
        said = capsys.readouterr().err
        assert "NaN or infinite at step" in said
        assert f"Last good checkpoint: {'none' if good is None else f'step {good} ('}" in said
        assert steps_saved(run) == ([] if good is None else [str(good)])
        record = json.loads((run / "run.json").read_text(), parse_constant=pytest.fail)
        assert record["status"] == "diverged"
        for line in (run / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_id_beyond_the_vocabulary_names_its_shard(corpus, tmp_path, capsys, split):
    cache = tmp_path / "cache"
    words = ["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", f"data.cache_dir={cache}"]
    assert main([*words, "max_steps=1", "name=first"]) == 0
    for shard in cache.glob(f"*/{split}-*.bin"):
        tokens = np.fromfile(shard, "<u2")
        tokens[5::64] = 60_000
        tokens.tofile(shard)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"/{split}-0" in said
    assert "is the id 60,000, and the vocabulary ends at 511" in said
    assert "data inspect --verify" in said


class FakeWandb:
    """What W&B is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []

    def log(self, row: dict, step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        pass


@pytest.mark.parametrize(("mode", "replayed"), [("offline", [1, 1, 2]), ("online", [])])
def test_an_offline_run_that_resumes_holds_the_whole_run(tmp_path, monkeypatch, mode, replayed):
    """The kept rows first; those beyond the checkpoint are trained and logged anew."""
    import wandb

    fake = FakeWandb()
    monkeypatch.setattr(wandb, "init", lambda **settings: fake)
    old = [
        {"step": 1, "train_loss": 5.0},
        {"step": 1, "val_loss": 5.0},
        {"step": 2, "train_loss": 4.0},
        {"step": 3, "train_loss": 3.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    logger = LoggerConfig(name="wandb", project="p", mode=mode)
    with Metrics(tmp_path, 2, logger, {}, writes=True) as metrics:
        metrics.write({"step": 3, "train_loss": 3.0, "gradient_alignment": float("nan")})
    assert [step for step, _ in fake.rows] == [*replayed, 3]
    assert fake.rows[-1][1]["gradient_alignment"] is None, "JSON has no NaN"
    assert [step for step, _ in rows(tmp_path, "train_loss")] == [1, 2, 3]
