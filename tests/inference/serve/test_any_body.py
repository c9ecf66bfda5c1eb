"""Whatever a body holds: an answer, or an error of the client's that is told in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from questtrain.inference.serve.bodies import NEUTRAL, ChatBody, CompletionBody
from tests.inference.serve.server_process import Server

NUMBERS = st.sampled_from([0, 1, -1, 3, 64, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-9, 1e308])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["def", "", ["a", "<s>"], [0, 5], [[0], [0, 7]]]),
    "max_tokens": st.integers(0, 4),
    "stream": st.booleans(),
    "logprobs": st.integers(0, 5),
    "echo": st.booleans(),
    "messages": st.just([{"role": "user", "content": "a"}]),
    "stop": st.sampled_from(["1", ["0", "2"]]),
}
NAMES = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *NEUTRAL, "user", "nothing"})
PATHS = st.sampled_from(["/v1/completions", "/v1/chat/completions"])


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Some parameters, most of them sensible."""
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    body = {"prompt": "a", "max_tokens": 3}
    for name in chosen:
        sensible = SENSIBLE.get(name)
        body[name] = draw(VALUES if sensible is None else sensible | VALUES)
    return body


@settings(max_examples=100)
@given(body=bodies(), path=PATHS)
def test_any_body_is_answered_or_refused(fake: Server, body: dict[str, Any], path: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = fake.http.post(path, content=json.dumps(body).encode(), headers=headers)
    assert response.status_code in (200, 400, 404, 429), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 10 < len(error["message"]) < 1000
    elif body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]
