"""A server's beginning and end: signals, an engine that dies, ports, keys, what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from questtrain.cli.main import main
from questtrain.config.serve import KEY_VARIABLE
from questtrain.errors import UserError
from questtrain.inference.serve.server import api_key, under_way
from tests.inference.serve.server_process import SECONDS, fake_command, running

LONG = {"prompt": "a", "max_tokens": 50, "seed": 1, "stream": True}


def fails(command: list[str], code: int = 2) -> str:
    """What a command that ends at once says: one line, and no traceback."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr


def test_sigterm_finishes_what_streams_and_takes_nothing_new(tokenizer: Path) -> None:
    """Exit code 0, and the stream is whole."""
    with running(fake_command(tokenizer, seconds=0.02)) as server:
        with server.http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = (line for line in response.iter_lines() if line)
            texts = [json.loads(next(lines)[6:])["choices"][0]["text"]]
            server.process.terminate()
            while httpx.get(f"{server.url}/health").status_code == 200:
                pass
            refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert "Retry-After" in refused.headers
            *chunks, done = [line.removeprefix("data: ") for line in lines]
        texts += [json.loads(chunk)["choices"][0]["text"] for chunk in chunks]
        assert done == "[DONE]"
        assert len("".join(texts)) == 50
        assert server.ended() == 0
        assert server.errors == []
        assert server.lines == ["stopping: 1 answer is finished first\n"]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (0, "nothing is being answered"),
        (1, "1 answer is finished first"),
        (1200, "1,200 answers are finished first"),
    ],
)
def test_how_many_answers_are_finished_is_told_in_the_right_words(answers: int, told: str) -> None:
    assert under_way(answers) == told


def test_what_takes_too_long_is_told_so(tokenizer: Path) -> None:
    """Longer than a request may, and longer than there is at the end."""
    with running(fake_command(tokenizer, seconds=0.1, timeout=1, drain=0.2)) as server:
        late = server.post(prompt="a", max_tokens=50)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with server.http.stream("POST", "/v1/completions", json=LONG) as response:
            *_, last = (line for line in response.iter_lines() if line)
        assert json.loads(last[6:])["error"]["type"] == "timeout_error"
        with server.http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            server.process.send_signal(signal.SIGINT)
            *_, last = lines
        assert json.loads(last[6:])["error"]["code"] == "draining"
        assert server.process.wait(SECONDS) == 0


def test_a_second_signal_ends_at_once(tokenizer: Path) -> None:
    """Nor does it say that the server waited, as long as it might have."""
    with (
        running(fake_command(tokenizer, seconds=1)) as server,
        server.http.stream("POST", "/v1/completions", json=LONG) as response,
    ):
        assert response.status_code == 200
        server.process.terminate()
        while httpx.get(f"{server.url}/health").status_code == 200:
            pass
        server.process.terminate()
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert "waited" not in response.read().decode()


@pytest.mark.parametrize(("token", "reason"), [(13, "SIGKILL"), (14, "the device is gone")])
def test_an_engine_that_dies_ends_the_server(tokenizer: Path, token: int, reason: str) -> None:
    """What is open is told, and the server ends with an error that says why."""
    with running(fake_command(tokenizer, seconds=0.02)) as server:
        with server.http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            fatal = httpx.post(f"{server.url}/v1/completions", json={"prompt": [0, token]})
            *_, last = lines
        assert fatal.status_code == 500
        for error in (fatal.json()["error"], json.loads(last[6:])["error"]):
            assert error["type"] == "server_error"
            assert reason in error["message"]
        assert server.process.wait(SECONDS) == 1
        assert server.errors[-1].startswith("stopped: ")
        assert reason in server.errors[-1]


def test_the_engine_ends_with_a_killed_server(tokenizer: Path) -> None:
    with running(fake_command(tokenizer, seconds=0.02)) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("the system does not tell of children")
        (engine,) = children.read_text().split()
        server.process.kill()
        server.process.wait()
        for _ in range(1000):
            state = Path(f"/proc/{engine}/stat")
            if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        pytest.fail("the engine goes on")


def test_a_run_that_cannot_be_loaded(tokenizer: Path) -> None:
    assert fails(fake_command(tokenizer, fault="no such run")) == "error: no such run\n"


def test_bad_settings_are_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is loaded."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = {
            f"port={taken.getsockname()[1]}": "in use",
            "host=0.0.0.0": "give a key",
            "host=nowhere.invalid": "no address",
            "host=203.0.113.1": "cannot be listened on",
            f"api_key_file={tmp_path}/none": "cannot be read",
            f"api_key_file={tmp_path}": "cannot be read",
            "port=70000": "65_535",
            "max_batch_size=0": "max_batch_size",
        }
        for word, what in wrong.items():
            assert main(["serve", "run=x", "port=0", word]) == 2, word
            (line,) = capsys.readouterr().err.splitlines()
            assert what in line


def test_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file goes before the environment; a key has no spaces, and is one."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert api_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "from-the-environment")
    assert api_key(None) == "from-the-environment"
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    assert api_key(str(file)) == "from-a-file"
    for bad in ("", "\n", "two words", "two\nlines", "ключ"):
        file.write_text(bad)
        with pytest.raises(UserError, match="must hold a key") as caught:
            api_key(str(file))
        assert not bad.strip() or bad.strip() not in str(caught.value)


def test_a_key_is_needed_and_not_told(tokenizer: Path) -> None:
    """By whoever asks anything but the page and whether the server is well; neither logs nor the
    engine's environment hold it."""
    key = "sk-a-secret-of-ours"
    with running(fake_command(tokenizer, access_log=True), key) as server:
        for header in ({}, {"Authorization": f"Bearer {key}x"}, {"Authorization": f"Basic {key}"}):
            for path in ("/v1/models", "/metrics", "/nothing"):
                response = server.http.get(path, headers=header)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
            assert server.http.get("/health", headers=header).json()["key_needed"]
            assert server.http.get("/", headers=header).status_code == 200
        with server.client() as client:
            assert client.completions.create(model="fake", prompt="a").usage.prompt_tokens == 2
        process = server.process.pid
        children = Path(f"/proc/{process}/task/{process}/children")
        if children.exists():
            (engine,) = children.read_text().split()
            assert key.encode() not in Path(f"/proc/{engine}/environ").read_bytes()
        assert server.end() == 0
        assert any("/v1/models" in line for line in server.errors)
        assert not any("secret" in line for line in server.errors + server.lines)
