"""What a server says over HTTP, on the fake engine: answers, refusals, limits, metrics."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

from tests.inference.serve.server_process import Server

JSON = {"Content-Type": "application/json"}
DEEP = '{"prompt":' + "[" * 9000 + "]" * 9000 + "}"

REFUSED = {
    "no JSON": ('{"prompt":', 400, None, None),
    "not an object": ('["a"]', 400, None, None),
    "NaN": ('{"prompt": "a", "temperature": NaN}', 400, "temperature", None),
    "too deep": (DEEP, 400, None, None),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, None, None),
    "half a pair": ('{"prompt": "\\ud800"}', 400, None, None),
    "half a pair in a name": ('{"prompt": "a", "\\ud800": 1}', 400, None, None),
    "a huge number": ('{"prompt": "a", "seed": 1' + "0" * 4000 + "}", 400, "seed", None),
    "no prompt": ("{}", 400, "prompt", None),
    "an empty list": ('{"prompt": []}', 400, "prompt", None),
    "a mixed list": ('{"prompt": ["a", 1]}', 400, "prompt", None),
    "true as a token": ('{"prompt": [true]}', 400, "prompt", None),
    "an unknown token": ('{"prompt": [0, 512]}', 400, "prompt", None),
    "a negative token": ('{"prompt": [-1]}', 400, "prompt", None),
    "max_tokens as text": ('{"prompt": "a", "max_tokens": "5"}', 400, "max_tokens", None),
    "max_tokens 0": ('{"prompt": "a", "max_tokens": 0}', 400, "max_tokens", None),
    "max_tokens below": ('{"prompt": "a", "max_tokens": -1}', 400, "max_tokens", None),
    "beyond the context": (
        '{"prompt": "a", "max_tokens": 63}', 400, "max_tokens", "context_length_exceeded"
    ),
    "a long prompt": (
        json.dumps({"prompt": "word " * 60}), 400, "prompt", "context_length_exceeded"
    ),
    "too hot": ('{"prompt": "a", "temperature": 2.5}', 400, "temperature", None),
    "too cold": ('{"prompt": "a", "temperature": 1e-9}', 400, "temperature", None),
    "top_p 0": ('{"prompt": "a", "top_p": 0}', 400, "top_p", None),
    "n 0": ('{"prompt": "a", "n": 0}', 400, "n", None),
    "n too large": ('{"prompt": "a", "n": 9}', 400, "n", None),
    "five stops": ('{"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}', 400, "stop", None),
    "an empty stop": ('{"prompt": "a", "stop": ""}', 400, "stop.0", None),
    "a long stop": (json.dumps({"prompt": "a", "stop": ["b", "c" * 2000]}), 400, "stop.1", None),
    "a huge max_tokens": (
        '{"prompt": "a", "max_tokens": 1' + "0" * 900 + "}",
        400, "max_tokens", "context_length_exceeded",
    ),
    "no stop": ('{"prompt": "a", "stop": []}', 400, "stop", None),
    "logprobs": ('{"prompt": "a", "logprobs": true}', 400, "logprobs", None),
    "suffix": ('{"prompt": "a", "suffix": "b"}', 400, "suffix", None),
    "best_of": ('{"prompt": "a", "best_of": 2}', 400, "best_of", None),
    "logit_bias": ('{"prompt": "a", "logit_bias": {"1": 5}}', 400, "logit_bias", None),
    "penalty": ('{"prompt": "a", "presence_penalty": 0.5}', 400, "presence_penalty", None),
    "unknown": ('{"prompt": "a", "top_k": 5}', 400, "top_k", None),
    "stream_options alone": (
        '{"prompt": "a", "stream_options": {"include_usage": true}}', 400, "stream_options", None
    ),
    "another model": ('{"prompt": "a", "model": "gpt-4"}', 404, "model", "model_not_found"),
    "too long": (json.dumps({"prompt": "a" * 30_000}), 413, None, "request_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_are_told_what_is_wrong(fake: Server, case: str) -> None:
    body, status, param, code = REFUSED[case]
    response = fake.http.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert 10 < len(error["message"]) < 400
    assert "body" in error["message"] or "Traceback" not in response.text


CONTENTS = {
    "no parts": ([], "messages.0.content", "is an empty list"),
    "nothing": (None, "messages.0.content", "parts of type text"),
    "a number": (1, "messages.0.content", "parts of type text"),
    "a picture": (
        [{"type": "image_url", "image_url": {"url": "x"}}], "messages.0.content.0.type", "'text'"
    ),
    "a part without text": ([{"type": "text"}], "messages.0.content.0.text", "missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENTS)
def test_what_a_message_may_hold_is_named(fake: Server, case: str) -> None:
    content, param, reason = CONTENTS[case]
    body = {"messages": [{"role": "user", "content": content}]}
    response = fake.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert reason in response.json()["error"]["message"]


WORDS = {
    "prompt": ({"prompt": []}, "prompt holds an empty list, where texts or token ids belong"),
    "a prompt": ({"prompt": [[0], []]}, "prompt holds an empty list, where texts or token"),
    "stop": ({"prompt": "a", "stop": []}, "stop is an empty list, and needs one entry at least."),
    "a stop": ({"prompt": "a", "stop": [""]}, "stop.0 is an empty text."),
    "long stop": ({"prompt": "a", "stop": "b" * 1001}, "stop.0 is longer than 1,000 characters."),
    "five stops": ({"prompt": "a", "stop": list("abcde")}, "stop has 5 entries: 4 at the most."),
    "messages": ({"messages": []}, "messages is an empty list, and needs one entry at least."),
    "a message": ({"messages": ["hi"]}, "messages.0 must be an object."),
    "no messages": ({"messages": "hi"}, "messages must be a list."),
    "a role": (
        {"messages": [{"role": "bot", "content": ""}]},
        "messages.0.role must be 'system', 'developer', 'user' or 'assistant'.",
    ),
    "model": ({"prompt": "a", "model": 5}, "model must be a text."),
    "tokens": ({"prompt": "a", "max_tokens": 3.5}, "max_tokens must be a whole number."),
    "no tokens": ({"prompt": "a", "max_tokens": "3"}, "max_tokens must be a whole number."),
    "hot": ({"prompt": "a", "temperature": "hot"}, "temperature must be a number."),
    "too hot": ({"prompt": "a", "temperature": 3}, "temperature must be at most 2."),
    "top_p": ({"prompt": "a", "top_p": 0}, "top_p must be above 0."),
    "n": ({"prompt": "a", "n": 0}, "n must be at least 1."),
    "stream": ({"prompt": "a", "stream": "yes"}, "stream must be true or false."),
    "one stop": ({"prompt": "a", "stop": 5}, "stop: a text, or a list of texts."),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_a_parameter_must_be_is_told_in_a_sentence(fake: Server, case: str) -> None:
    """None of them in pydantic's words."""
    body, message = WORDS[case]
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = fake.http.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


def test_another_parameter_is_proposed_for_a_slip_only(fake: Server) -> None:
    """Not for one of OpenAI's that is not supported."""
    messages = [
        fake.post(prompt="a", **given).json()["error"]["message"]
        for given in ({"logit_bias": {"1": 5}}, {"max_token": 5})
    ]
    assert ["Did you mean" in message for message in messages] == [False, True]


def test_what_changes_nothing_may_be_said(fake: Server) -> None:
    """Neutral values of what is not supported, and who asks."""
    said = {"suffix": None, "best_of": 1, "logit_bias": {}, "presence_penalty": 0, "user": "me"}
    response = fake.post(prompt="a", max_tokens=3, seed=5, model="fake", **said)
    (choice,) = response.json()["choices"]
    assert choice == {"index": 0, "text": "5:0", "logprobs": None, "finish_reason": "length"}
    assert response.json()["system_fingerprint"] == "step7-abababababab-cdcdcd"


def test_other_paths_methods_and_types_have_the_same_shape(fake: Server) -> None:
    wrong = {
        404: fake.http.get("/v1/nothing"),
        405: fake.http.get("/v1/completions"),
        415: fake.http.post("/v1/completions", content='{"prompt": "a"}'),
    }
    for status, response in wrong.items():
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert wrong[405].headers["Allow"] == "POST"
    form = {"Content-Type": "text/plain"}
    assert fake.http.post("/v1/completions", content="{}", headers=form).status_code == 415


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/fake", "/metrics"])
def test_what_is_read_may_be_asked_for_by_its_head(fake: Server, path: str) -> None:
    """As a browser or a monitor does: the same status and headers, and no body."""
    whole, head = fake.http.get(path), fake.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    assert head.headers.get("Content-Security-Policy") == whole.headers.get(
        "Content-Security-Policy"
    )
    assert fake.http.head("/v1/models/other").status_code == 404
    refused = fake.http.post(path, json={})
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert f"{path} takes GET and HEAD, not POST" in refused.json()["error"]["message"]


def test_models(fake: Server) -> None:
    listed = fake.http.get("/v1/models").json()
    assert listed["data"] == [fake.http.get("/v1/models/fake").json()]
    assert listed["data"][0]["max_model_len"] == 64
    assert fake.http.get("/v1/models/other").status_code == 404


def test_several_prompts_and_choices_in_order(fake: Server) -> None:
    """Choice n·i + j is the j-th answer to prompt i, with seed + j."""
    body = fake.post(prompt=["a", "bb"], n=2, max_tokens=2, seed=7, echo=True).json()
    assert [each["text"] for each in body["choices"]] == ["a7:", "a8:", "bb7:", "bb8:"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def test_a_text_begins_with_bos_and_its_spelling_in_a_text_is_text(fake: Server) -> None:
    tokens = fake.post(prompt="<s>", max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
    assert len(tokens["logprobs"]["tokens"]) == 4  # BOS, <, s, >
    assert tokens["text"] == "<s>"
    assert fake.post(prompt="", max_tokens=1).json()["usage"]["prompt_tokens"] == 1


def events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line]


def test_a_stream_is_the_whole_in_pieces(fake: Server) -> None:
    body = {"prompt": "ab", "max_tokens": 12, "seed": 3, "echo": True, "logprobs": 1}
    whole = fake.post(**body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with fake.http.stream("POST", "/v1/completions", json={**body, **options}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, last, done = events(response)
    assert done == "[DONE]"
    assert json.loads(last)["usage"] == whole["usage"]
    assert json.loads(last)["choices"] == []
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    (expected,) = whole["choices"]
    assert "".join(choice["text"] for choice in choices) == expected["text"]
    assert [choice["finish_reason"] for choice in choices][-1] == "length"
    for key, values in expected["logprobs"].items():
        assert [each for choice in choices for each in choice["logprobs"][key]] == values


def test_an_answer_says_when_it_was_made(fake: Server) -> None:
    """All events of a stream say the same; the model is as old as the server."""
    while (asked := int(time.time())) <= fake.http.get("/v1/models/fake").json()["created"]:
        time.sleep(0.1)
    body = {"prompt": "a", "max_tokens": 9}
    whole = fake.post(**body).json()["created"]
    with fake.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        *chunks, _ = events(response)
    (streamed,) = {json.loads(chunk)["created"] for chunk in chunks}
    assert asked <= whole <= streamed <= time.time()


def test_a_stream_tells_of_an_error_in_it(fake: Server) -> None:
    """One before the first token has a status; one within is an event, and nothing is done."""
    assert fake.post(prompt=[0, 15], stream=True).status_code == 500
    late = {"prompt": [[0, 1], [0, 1], [0, 15]], "max_tokens": 20, "stream": True}
    with fake.http.stream("POST", "/v1/completions", json=late) as response:
        assert response.status_code == 200
        *_, last = events(response)
    assert "too little memory" in json.loads(last)["error"]["message"]
    assert fake.health()["status"] == "ok"


def slow(fake: Server, **body) -> httpx.Response:
    return fake.post(prompt="a", max_tokens=60, **body)


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again(fake: Server) -> None:
    """Eight fit; none of them is harmed by the one too many."""
    statuses: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: statuses.append(slow(fake, n=4))) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: fake.health()["waiting"] > 4)
    response = fake.post(prompt="a")
    for thread in threads:
        thread.join()
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert [each.status_code for each in statuses] == [200, 200]


def test_a_client_that_hangs_up_frees_its_slot(fake: Server) -> None:
    """Streaming or not, long before it would have been finished."""
    for stream in (False, True):
        before = fake.metric("questtrain_generated_tokens_total")
        body = json.dumps({"prompt": "a", "max_tokens": 62, "n": 8, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", httpx.URL(fake.url).port)) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            wait_for(lambda: fake.health()["running"] == 2)
        wait_for(lambda: fake.health()["running"] + fake.health()["waiting"] == 0)
        assert fake.metric("questtrain_generated_tokens_total") - before < 8 * 62 - 100


def test_pages_of_other_origins_and_other_names_are_refused(fake: Server) -> None:
    """DNS rebinding: a name of the attacker's that resolves to loopback."""
    port = httpx.URL(fake.url).port
    for name in (
        "evil.example",
        f"evil.example:{port}",
        "",
        "127.0.0.1.evil.example",
        "[::2]",
        "[",
    ):
        response = fake.http.get("/v1/models", headers={"Host": name})
        assert response.status_code == 403, name
    for origin in ("https://evil.example", "null", "http://[", "", f"http://127.0.0.1:{port + 1}"):
        response = fake.http.get("/v1/models", headers={"Origin": origin})
        assert response.status_code == 403, origin
        assert not any("access-control" in name for name in response.headers)
    for name in ("localhost", f"LOCALHOST:{port}", "127.0.0.1:9", "[::1]:80"):
        response = fake.http.get("/v1/models", headers={"Host": name})
        assert response.status_code == 200, name
    assert fake.http.get("/v1/models", headers={"Origin": fake.url}).status_code == 200


def test_metrics_count_what_happened(fake: Server) -> None:
    counted = {
        'questtrain_requests_total{endpoint="completions",outcome="completed"}': 1,
        'questtrain_requests_total{endpoint="completions",outcome="refused"}': 1,
        "questtrain_generated_tokens_total": 6,
        "questtrain_prompt_tokens_total": 4,
        "questtrain_time_to_first_token_seconds_count": 2,
        "questtrain_time_per_token_seconds_count": 2,
        "questtrain_queue_seconds_count": 2,
    }
    before = {line: fake.metric(line) for line in counted}
    fake.post(prompt="a", n=2, max_tokens=3)
    fake.post(prompt="a", n=0)
    assert {line: fake.metric(line) - before[line] for line in counted} == counted
    assert fake.metric("questtrain_running") == fake.metric("questtrain_waiting") == 0


def test_what_is_no_utf8_is_told_with_its_place(fake: Server) -> None:
    refused = fake.http.post("/v1/completions", content=b'{"prompt": "a\xff"}', headers=JSON)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message == "the body is no UTF-8: byte 0xff at place 13 (from 0)."


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_one_parameter_asks_of_another_names_one(fake: Server, said: dict, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **said}
    refused = fake.http.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
