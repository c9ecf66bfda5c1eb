"""Preparation that is killed, and preparation that happens twice at once, in real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from questtrain.data import cache, prepare, sources
from tests.data.corpus import all_documents, sentences, write_jsonl

PIECES = 6
DOCUMENTS = sentences(6 * PIECES)

# Encoding waits a little, so that the test can catch the preparation at work.
SCRIPT = """
import sys, time
from questtrain.config.schema import DataConfig
from questtrain.data import prepare, sources
from questtrain.data.tokenizer import JsonTokenizer

sources.LARGE_FILE_BYTES = 1
encode = JsonTokenizer.encode_batch
def slowly(self, texts):
    time.sleep(float(sys.argv[4]))
    return encode(self, texts)
JsonTokenizer.encode_batch = slowly
config = DataConfig("text", "text", files=[sys.argv[1] + "/*.jsonl"], tokenizer=sys.argv[2],
                    validation_fraction=0.2, cache_dir=sys.argv[3], num_workers=int(sys.argv[5]))
prepare(config).verify()
"""


@pytest.fixture
def config(tmp_path: Path, make_config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LARGE_FILE_BYTES", 1)
    for number in range(PIECES):
        write_jsonl(tmp_path / "corpus" / f"{number}.jsonl", DOCUMENTS[number::PIECES])
    return make_config(files=[f"{tmp_path}/corpus/*.jsonl"])


def start(config, tmp_path: Path, delay: float, workers: int = 1) -> subprocess.Popen[bytes]:
    arguments = [f"{tmp_path}/corpus", config.tokenizer, config.cache_dir, str(delay), str(workers)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=environment)


def wait_for(cache: str, pattern: str, process: subprocess.Popen[bytes]) -> list[Path]:
    for _ in range(3000):
        found = sorted(Path(cache).glob(pattern))
        if found:
            return found
        assert process.poll() is None, "the preparation ended before it could be caught"
        time.sleep(0.01)
    raise AssertionError(f"no {pattern} within 30 seconds")


def test_killed_preparation_continues(tmp_path: Path, config) -> None:
    process = start(config, tmp_path, delay=0.3)
    wait_for(config.cache_dir, "*/pieces/train-00001.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = next(Path(config.cache_dir).iterdir())
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("pieces/*.json")}
    assert 2 <= len(finished) < PIECES
    assert not (folder / "manifest.json").exists()
    (folder / f".train-00003.bin.{process.pid}.tmp").write_bytes(b"half a shard")

    dataset = prepare(config)
    assert dataset.folder == folder
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "nothing made twice"
    assert not list(folder.rglob("*.tmp"))
    dataset.verify()
    assert all_documents(dataset) == sorted(DOCUMENTS)


def test_workers_end_with_their_killed_parent(tmp_path: Path, config) -> None:
    process = start(config, tmp_path, delay=0, workers=2)
    while not (children := _children(process.pid)):
        assert process.poll() is None, "the preparation ended before it could be caught"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(500):
        if not any(_is_running(child) for child in children):
            break
        time.sleep(0.02)
    assert not any(_is_running(child) for child in children)
    prepare(config).verify()


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if not path.exists():
        pytest.skip("no /proc/PID/children here")
    return [int(word) for word in path.read_text().split()]


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_two_preparers_at_once(tmp_path: Path, config) -> None:
    processes = [start(config, tmp_path, delay=0.05) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    (folder,) = Path(config.cache_dir).iterdir()
    assert not list(folder.rglob("*.tmp"))
    dataset = prepare(config)
    dataset.verify()
    assert all_documents(dataset) == sorted(DOCUMENTS)


def test_two_preparers_without_locks(tmp_path: Path, config, monkeypatch) -> None:
    """On a file system without locks both do all the work, and the result is the same."""

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    process = start(config, tmp_path, delay=0.05)
    wait_for(config.cache_dir, "*/pieces/train-00000.json", process)
    monkeypatch.setattr(cache.fcntl, "flock", unsupported)
    dataset = prepare(config)
    assert process.wait(timeout=60) == 0
    dataset.verify()
    assert all_documents(dataset) == sorted(DOCUMENTS)
