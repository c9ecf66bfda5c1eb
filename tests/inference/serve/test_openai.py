"""A trained run behind the API, asked by the official client: what it says is what was trained."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from questtrain.cli.main import main
from questtrain.inference.load import TrainedModel, load_run
from tests.inference.serve.server_process import Server, running
from tests.training_data import TINY

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def run(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    words = [*TINY, *corpus, "bits=w4a4", "sequence_length=64", "max_steps=12"]
    assert main(["train", *words, f"runs_dir={runs}", "name=tiny"]) == 0
    (runs / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    return runs / "tiny"


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    words = [f"run={run}", "port=0", "device=cpu", "packed=false", "max_batch_size=8"]
    command = [sys.executable, "-m", "questtrain.cli.main", "serve", *words]
    with running(command) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return load_run(run, "cpu")


def complete(client: OpenAI, **asked: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "def ", "seed": 1, **asked})


def test_what_is_told_is_what_the_model_gives(client: OpenAI, trained: TrainedModel) -> None:
    """Greedy tokens and the log-probabilities of prompt and answer, by full forward passes."""
    asked = {"prompt": "import os", "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 2}
    answer = complete(client, **asked)
    (choice,) = answer.choices
    tokenizer = trained.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode("import os")]
    seen = list(prompt)
    for _ in range(8):
        seen.append(int(trained.model(torch.tensor([seen]))[0, -1].argmax()))
    expected = trained.model(torch.tensor([seen])).log_softmax(-1)[0]
    told = choice.logprobs
    assert choice.text == tokenizer.decode(seen)
    assert told.tokens[0] == "<s>"
    assert "".join(told.tokens[1:]) == choice.text
    assert told.token_logprobs[0] is None
    wanted = [float(expected[i, token]) for i, token in enumerate(seen[1:])]
    assert told.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    for top, row in zip(told.top_logprobs[1:], expected, strict=False):
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
    assert [choice.text[at:][:1] for at in told.text_offset[1:]] == [t[:1] for t in told.tokens[1:]]
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 8
    assert answer.system_fingerprint.startswith("step12-")


def test_token_ids_are_taken_as_they_are(client: OpenAI, trained: TrainedModel) -> None:
    ids = [trained.tokenizer.bos_id, *trained.tokenizer.encode("def ")]
    same = [complete(client, prompt=prompt, max_tokens=9).choices[0] for prompt in (ids, "def ")]
    assert same[0] == same[1]
    echoed = complete(client, prompt=[ids, ids[1:]], max_tokens=0, echo=True, logprobs=0)
    assert [len(choice.logprobs.tokens) for choice in echoed.choices] == [len(ids), len(ids) - 1]
    assert [choice.text for choice in echoed.choices] == ["def ", "def "]


def test_a_stream_is_the_whole(client: OpenAI) -> None:
    asked = {"max_tokens": 30, "n": 2, "temperature": 1.3}
    whole = complete(client, **asked)
    texts, finish, usage = {0: "", 1: ""}, {}, None
    with complete(client, **asked, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                finish[choice.index] = choice.finish_reason
    assert [texts[choice.index] for choice in whole.choices] == [c.text for c in whole.choices]
    assert finish == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert texts[0] != texts[1]


def test_a_stop_string_is_not_part_of_the_answer(client: OpenAI) -> None:
    whole = complete(client, max_tokens=40).choices[0].text
    stop = whole[20:23]
    (choice,) = complete(client, max_tokens=40, stop=["never, never", stop]).choices
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_seed_gives_the_same_whatever_else_is_asked(client: OpenAI) -> None:
    """Alone and among others; another seed, another text."""
    asked = {"max_tokens": 24, "temperature": 1.0}
    alone = [complete(client, **asked, seed=seed).choices[0].text for seed in (5, 6)]
    with ThreadPoolExecutor(12) as pool:
        seeds = [5, 100, 6, 101, 102, 5, 103, 104, 105, 106, 6, 5]
        among = list(
            pool.map(lambda seed: complete(client, **asked, seed=seed).choices[0].text, seeds)
        )
    assert alone[0] != alone[1]
    assert [text for seed, text in zip(seeds, among, strict=True) if seed == 5] == [alone[0]] * 3
    assert [text for seed, text in zip(seeds, among, strict=True) if seed == 6] == [alone[1]] * 2


def test_without_a_seed_texts_differ(client: OpenAI) -> None:
    texts = {complete(client, seed=None, max_tokens=20).choices[0].text for _ in range(3)}
    assert len(texts) > 1


def chat(client: OpenAI, text: str, **asked: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, seed=2, **asked)


def test_a_chat_is_the_completion_of_its_template(client: OpenAI, trained: TrainedModel) -> None:
    """Special tokens of the template are tokens; what spells one in a message is text."""
    encode = trained.tokenizer.encode
    ids = [trained.tokenizer.bos_id, *encode("user: a <s> b\nassistant:")]
    plain = complete(client, prompt=ids, seed=2, max_tokens=16)
    answer = chat(client, "a <s> b", max_tokens=16, logprobs=True, top_logprobs=2)
    (choice,) = answer.choices
    assert choice.message.content == plain.choices[0].text
    assert choice.message.role == "assistant"
    assert answer.usage == plain.usage
    spelled = b"".join(bytes(each.bytes) for each in choice.logprobs.content)
    assert spelled.decode(errors="replace") == choice.message.content
    assert all(len(each.top_logprobs) == 2 for each in choice.logprobs.content)
    with chat(client, "a <s> b", max_tokens=16, stream=True) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content for delta in deltas) == choice.message.content
    assert [delta.role for delta in deltas][:2] == ["assistant", None]
    rest = chat(client, "x").usage
    assert rest.total_tokens == 64 or rest.completion_tokens < 64 - rest.prompt_tokens


def test_errors_are_the_clients_own(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        complete(client, model="gpt-4")
    with pytest.raises(openai.BadRequestError, match="context is 64 tokens") as caught:
        complete(client, prompt="word " * 70)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        chat(client, "a", tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens are the same"):
        chat(client, "a", max_tokens=1, max_completion_tokens=2)
    assert client.models.retrieve("tiny").id == "tiny"
    assert server.health()["status"] == "ok"


BAD = (
    b'{"prompt": "a", "max_tokens": 900}',
    b'{"prompt": ',
    b'{"prompt": "a", "temperature": "hot"}',
    b"\x00\xff",
    b'{"prompt": [99999]}',
)


def bad_request(server: Server, index: int) -> str:
    """A request that is refused, or a client that is gone before its answer is."""
    if index % 3 == 0:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as gone:
            body = json.dumps({"prompt": "a", "max_tokens": 50, "stream": True}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            head += f"{len(body)}\r\nContent-Type: application/json\r\n\r\n"
            gone.sendall(head.encode() + body)
            return "gone"
    headers = {"Content-Type": "application/json"}
    body = BAD[index % len(BAD)]
    response = server.http.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text
    return "refused"


def test_sixty_four_clients_and_wrong_ones_between_them(client: OpenAI, server: Server) -> None:
    """Everybody who asks right gets the text of their seed."""
    seeds = [random.Random(index).randrange(4) for index in range(64)]
    expected = {s: complete(client, max_tokens=8, seed=s).choices[0].text for s in set(seeds)}
    together = threading.Barrier(64)

    def ask(index: int) -> str:
        together.wait(60)
        if index % 4 == 3:
            return bad_request(server, index)
        if index % 2:
            return complete(client, max_tokens=8, seed=seeds[index]).choices[0].text
        with complete(client, max_tokens=8, seed=seeds[index], stream=True) as stream:
            return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    right = [index for index in range(64) if index % 4 != 3]
    assert [answers[i] for i in right] == [expected[seeds[i]] for i in right]
    assert {answers[i] for i in range(64) if i not in right} == {"gone", "refused"}
    complete(client, max_tokens=1)
    assert server.health() | {"running": 0, "waiting": 0} == server.health()
    assert not any("Traceback" in line or "rror" in line for line in server.errors)


def test_sigterm_finishes_what_the_model_is_saying(server: Server) -> None:
    """The last test of the server: it ends."""
    with server.client() as client:
        stream = complete(client, max_tokens=60, stream=True)
        texts = [next(stream).choices[0].text]
        server.process.terminate()
        texts += [chunk.choices[0].text for chunk in stream]
        assert server.process.wait(60) == 0
    assert sum(map(len, texts)) > 60
    assert not any("Traceback" in line or "rror" in line for line in server.errors)
