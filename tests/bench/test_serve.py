"""`questtrain bench serve`: what a client notes, what its windows amount to, and real servers of
tiny models from start to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import torch
from aiohttp import web

from questtrain.bench.model.random_models import stacked_model
from questtrain.bench.serve import bench
from questtrain.bench.serve.client import Client, Stream, Work
from questtrain.bench.serve.compiled import compile_served_blocks
from questtrain.bench.serve.load import Window, closed_loop, open_loop
from questtrain.bench.serve.numbers import numbers_of, tokens_in
from questtrain.bench.serve.server import running_server
from questtrain.bench.settings import ServeLoadConfig
from questtrain.cli.arguments import Arguments, own_config
from questtrain.cli.bench_models import served_cases
from questtrain.cli.main import main
from questtrain.config import ModelConfig
from questtrain.errors import UserError
from questtrain.inference.engine.loading import ServedRun

WORK = Work(prompt_tokens=5, output_tokens=4, vocab_size=50, temperature=0.0, seed=1)
Answer = Callable[[web.StreamResponse, dict], Awaitable[None]]


def event(content: dict) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(word: str) -> dict:
    return {"choices": [{"index": 0, "text": word}], "usage": None}


async def whole(response: web.StreamResponse, body: dict) -> None:
    """As many tokens as asked for, an event of two in one piece, then one cut in two pieces."""
    await response.write(event(text("a")) + event(text("")))
    await response.write(event(text("b"))[:20])
    await asyncio.sleep(0.01)
    await response.write(event(text("b"))[20:])
    usage = {"completion_tokens": body["max_tokens"]}
    await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")


async def asked(answer: Answer, status: int, work: Callable[[str], object]) -> object:
    """What ``work`` comes to in a thread of its own, with the URL of a server that answers so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await answer(response, body)
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = site._server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(work, f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()


def one_stream(answer: Answer, status: int = 200) -> Stream:
    async def ask(url: str) -> Stream:
        async with Client(url) as client:
            return await client.ask(WORK.body(0))

    return asyncio.run(asked(answer, status, lambda url: asyncio.run(ask(url))))


def test_a_stream_notes_each_event_that_brings_text():
    stream = one_stream(whole)
    assert stream.error is None
    assert (stream.tokens, len(stream.arrivals)) == (4, 2)
    assert stream.asked < stream.arrivals[0] <= stream.arrivals[1]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b'{"error": "full"}', 429, "429: "),
        (event({"error": {"message": "died"}}) + b"data: [DONE]\n\n", 200, "died"),
        (event(text("a")), 200, "before its [DONE]"),
    ],
)
def test_what_goes_wrong_is_the_streams_error(content, status, message):
    async def answer(response: web.StreamResponse, _: dict) -> None:
        await response.write(content)

    assert message in one_stream(answer, status).error


def test_prompts_follow_from_seed_and_number():
    body = WORK.body(3)
    assert body == WORK.body(3)
    assert len(body["prompt"]) == 5
    assert all(0 <= token < 50 for token in body["prompt"])
    assert body["prompt"] != WORK.body(4)["prompt"]
    assert WORK.body(3, 2)["max_tokens"] == 2


def test_a_closed_loop_keeps_so_many_clients_busy():
    most, open_now = 0, 0

    async def answer(response: web.StreamResponse, body: dict) -> None:
        nonlocal most, open_now
        open_now += 1
        most = max(most, open_now)
        await whole(response, body)
        open_now -= 1

    window = asyncio.run(asked(answer, 200, lambda url: closed_loop(url, WORK, 3, 0.2)))
    assert most == 3
    numbers = numbers_of([window])
    assert numbers["errors"] == 0
    # Each stream is two events of two tokens, and lasts a little over 5 ms.
    assert 3 <= numbers["requests"] <= 3 * 40
    assert numbers["tokens_per_second"] == pytest.approx(
        4 * numbers["requests_per_second"], rel=0.5
    )
    assert 0 < numbers["client_busy"] <= 1.5


def test_an_open_loop_asks_whether_or_not_it_is_answered():
    async def answer(response: web.StreamResponse, body: dict) -> None:
        await asyncio.sleep(0.1)
        await whole(response, body)

    window = asyncio.run(asked(answer, 200, lambda url: open_loop(url, WORK, 200.0, 0.2)))
    inside = [s for s in window.streams if window.begin <= s.asked < window.end]
    assert 10 <= len(inside) <= 80  # 40 on average; a closed loop of few would have two each
    assert numbers_of([window])["errors"] == 0


def test_a_server_that_refuses_ends_the_loop_with_its_errors():
    async def answer(response: web.StreamResponse, _: dict) -> None:
        await response.write(b"{}")

    window = asyncio.run(asked(answer, 500, lambda url: closed_loop(url, WORK, 2, 0.05)))
    numbers = numbers_of([window])
    assert numbers["errors"] == 2
    assert numbers["tokens_per_second"] == 0
    assert numbers["first_token_p50"] is None


def stream_at(asked: float, arrivals: Sequence[float], tokens: int) -> Stream:
    return Stream(asked, list(arrivals), tokens)


def test_numbers_of_a_window():
    """Only what arrives within a window counts; an event's part of its answer's tokens does."""
    before = stream_at(9.0, [9.5, 10.5], tokens=4)  # two of its tokens are inside
    inside = stream_at(10.0, [10.25, 10.75, 11.25], tokens=3)
    after = stream_at(11.5, [11.75, 12.5], tokens=2)
    broken = Stream(10.5, error="gone")
    window = Window(2.0, 10.0, 0.5, [before, inside, after, broken])
    assert tokens_in(window) == 2 + 3 + 1
    numbers = numbers_of([window, Window(2.0, 20.0, 0.5, [])])
    assert numbers["tokens_per_second"] == pytest.approx(1.5)  # the median of 3 and 0
    assert (numbers["tokens_per_second_low"], numbers["tokens_per_second_high"]) == (0, 3)
    assert numbers["requests_per_second"] == pytest.approx(2 / 4)
    assert (numbers["requests"], numbers["errors"]) == (2, 1)
    assert numbers["first_token_p50"] == pytest.approx(250)
    assert numbers["token_p99"] == pytest.approx(750, rel=0.01)
    assert numbers["gap_p50"] == pytest.approx(500)
    assert numbers["client_busy"] == pytest.approx(0.25)


def test_blocks_compiled_for_a_server_compute_the_same():
    """Of steps (a row a sequence) and of prompts, which are compiled apart."""
    torch.manual_seed(0)
    shape = ModelConfig("tiny", 1, 2, 64, 2, intermediate_size=128, vocab_size=32)
    model = stacked_model(shape, torch.device("cpu"))
    prompts = [torch.randint(32, size) for size in ((2, 1), (1, 7), (3, 4))]
    with torch.inference_mode():
        before = [model(tokens) for tokens in prompts]
        compile_served_blocks(model)
        with torch.compiler.set_stance("force_eager"):  # the compiler's own tests are its own
            after = [model(tokens) for tokens in prompts]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_servers_of_random_models(tmp_path, monkeypatch, capsys):
    windows = []

    def recorded(*arguments, **keywords):
        windows.append(closed_loop(*arguments, **keywords))
        return windows[-1]

    monkeypatch.setattr(bench, "closed_loop", recorded)
    monkeypatch.setenv("QUESTTRAIN_API_KEY", "secret")  # not of servers of ours
    output = tmp_path / "serve.json"
    words = "models=nano layers=1 vocab_size=64 clients=2 rate=20 prompt_tokens=6 output_tokens=5"
    quick = "seconds=0.5 rounds=1 device=cpu"
    assert main(["bench", "serve", *words.split(), *quick.split(), f"output={output}"]) == 0
    record = json.loads(output.read_text())
    assert record["complete"]
    loads = [(row["clients"], row["rate"], row["case"]) for row in record["rows"]]
    assert loads == [
        (2, None, "bf16"),
        (2, None, "w4a4"),
        (None, 20.0, "bf16"),
        (None, 20.0, "w4a4"),
    ]
    for row in record["rows"]:
        assert row["errors"] == 0
        assert row["requests"] > 0
        assert 0 < row["token_p50"] <= row["token_p99"]
    bf16, w4a4, *_ = record["rows"]
    ratio = w4a4["tokens_per_second"] / bf16["tokens_per_second"]
    assert w4a4["speedup"] == pytest.approx(ratio)
    # No answer ends before its length.
    assert len(windows) == 4
    assert {stream.tokens for window in windows for stream in window.streams} == {5}
    assert "nano, 1 layers: a server that streams" in capsys.readouterr().out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_cannot_start_says_why(tmp_path):
    words = ["models=nano", "clients=[1,3]", "prompt_tokens=8", "output_tokens=8", "device=cpu"]
    config = own_config(Arguments(overrides=words), "bench_serve", ServeLoadConfig)
    served = served_cases(config)
    assert (served.server.context, served.server.max_batch_size) == (16, 3)
    assert {case: typed.bits for case, typed in served.models["nano"].items()} == {
        "bf16": "bf16",
        "w4a4": "w4a4",
    }
    without_key = replace(served.server, api_key_file=str(tmp_path / "none"))
    run = ServedRun(str(tmp_path), "cpu", None, True, 1, 16)
    with (
        pytest.raises(UserError, match=r"the server did not start: .*none cannot be read"),
        running_server(without_key, run, tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize("setting", ["models=nano", "bits=w4a4", "vocab_size=64", "layers=1"])
def test_a_run_has_its_own_shape(setting, capsys):
    assert main(["bench", "serve", "run=runs/first", setting, "device=cpu"]) == 2
    assert f"run= or {setting.partition('=')[0]}=, not both" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "on_cpu"), [("null", False), ("true", True), ("false", False)])
def test_blocks_are_compiled_on_a_cpu_where_that_is_asked_for(tmp_path, asked, on_cpu):
    words = ["models=nano", f"compile={asked}", "device=cpu"]
    config = own_config(Arguments(overrides=words), "bench_serve", ServeLoadConfig)
    served, of_nano = served_cases(config).server, served_cases(config).models["nano"]["bf16"]
    load = bench._load("bf16", of_nano, served, config, tmp_path, torch.device("cpu"))
    assert load.compile is on_cpu
