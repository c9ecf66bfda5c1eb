"""The page to try the model by hand, in headless Chromium, on a server of the fake engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser import SCREENS, Browser
from tests.inference.serve.server_process import Server, fake_command, running

pytestmark = pytest.mark.browser

KEY = "sk-of-the-page"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.driver.quit()


@pytest.fixture(scope="module")
def server(tokenizer: Path) -> Iterator[Server]:
    with running(fake_command(tokenizer, seconds=0.02), KEY) as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    browser.show(server.url)
    wait_for(lambda: browser.texts("#model") == ["fake"])
    browser.enter("key", KEY)
    browser.console()  # what earlier tests left
    return browser


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(page: Browser, **fields: str) -> None:
    for name, value in {"prompt": "a", "seed": "5", "max_tokens": "20", **fields}.items():
        page.enter(name, value)
    page.find("#go").click()


def done(page: Browser) -> bool:
    return page.find("#go").is_enabled()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_and_loads_nothing_from_elsewhere(browser, server, screen, dark) -> None:
    browser.show(server.url, screen, dark)
    wait_for(lambda: "context of 64" in browser.texts("#facts")[0])
    ask(browser, key=KEY, prompt="word" * 60)
    wait_for(lambda: done(browser))
    assert browser.value_of("document.documentElement.scrollWidth") <= SCREENS[screen][0]
    loaded = browser.value_of("performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith(server.url) for name in loaded)
    background = browser.value_of("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 24, 27)" if dark else "rgb(251, 250, 247)")


def test_an_answer_streams_in(page: Browser) -> None:
    """Piece by piece; then tokens and their speed are told."""
    ask(page, max_tokens="60")
    wait_for(lambda: 0 < len(page.texts("#made")[0]) < 40)
    assert not page.find("#go").is_enabled()
    wait_for(lambda: done(page))
    (text,) = page.texts("#text")
    assert text.startswith("a5:0 1 2 3 ")
    assert len(text) == 61
    (status,) = page.texts("#status")
    assert status.startswith("60 tokens, ")
    assert "tokens/s" in status
    page.find("#take").click()
    assert page.value_of("document.getElementById('prompt').value") == text
    assert not page.console()


def test_stopping_frees_the_slot(page: Browser, server: Server) -> None:
    before = server.metric("questtrain_generated_tokens_total")
    ask(page, max_tokens="60")
    wait_for(lambda: page.texts("#made")[0] != "")
    page.find("#halt").click()
    wait_for(lambda: done(page))
    assert page.texts("#status") == ["stopped by you."]
    wait_for(lambda: server.health()["running"] == 0)
    assert server.metric("questtrain_generated_tokens_total") - before < 60


def test_errors_are_told_in_words(page: Browser) -> None:
    ask(page, max_tokens="64")
    wait_for(lambda: done(page))
    assert page.find("#error").get_attribute("role") == "alert"
    assert "the context is 64 tokens" in page.texts("#error")[0]
    ask(page, key="wrong")
    wait_for(lambda: done(page))
    assert "API key is wrong" in page.texts("#error")[0]
    assert page.value_of("document.activeElement.id") == "key"
    ask(page, key=KEY, max_tokens="3")
    wait_for(lambda: done(page))
    assert page.texts("#made") == ["5:0"]
    assert not page.find("#error").is_displayed()


def test_every_field_has_a_name_and_a_keyboard_reaches_it(page: Browser) -> None:
    unnamed = page.value_of(
        "[...document.querySelectorAll('input, textarea, output')]"
        ".filter((e) => !e.labels.length && !e.hasAttribute('aria-labelledby')).map((e) => e.id)"
    )
    assert unnamed == []
    order = []
    page.run("document.getElementById('key').focus()")
    for _ in range(8):
        order.append(page.value_of("document.activeElement.id"))
        page.find(f"#{order[-1]}").send_keys("\t")
    assert order == ["key", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "go"]


def test_what_a_model_says_is_text_and_only_the_pages_own_script_runs(page, server) -> None:
    ask(page, prompt="<img src=x onerror=alert(1)><script>alert(2)</script>", max_tokens="2")
    wait_for(lambda: done(page))
    assert page.count("output img") == page.count("output script") == 0
    policy = server.http.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    page.run(
        "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        "document.body.append(s)"
    )
    assert page.value_of("window.bad") is None
    assert "Content Security Policy" in page.console()[-1]["message"]
