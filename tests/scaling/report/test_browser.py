"""The page in headless Chromium, opened from disk: it draws, answers, and keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from questtrain.scaling.fit import fit_law
from questtrain.scaling.law import Law
from questtrain.scaling.plan import Budget, extrapolation, plan
from questtrain.scaling.points import law_points
from questtrain.scaling.precision import label_text
from questtrain.scaling.report import write_report
from questtrain.scaling.runs import read_runs
from tests.browser import SCREENS, Browser
from tests.scaling.law_runs import finish, write_law_table
from tests.scaling.report import HOSTILE, OWN_LABEL, make_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[str]]:
    return make_page(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def law(made) -> Law:
    return fit_law(law_points(read_runs(made[1]))[0])


@pytest.fixture
def page(browser, made) -> Browser:
    browser.show(made[0])
    return browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_it_draws_without_error_overflow_or_network(browser, made, screen, dark):
    browser.show(made[0], screen, dark)
    width = browser.value_of("innerWidth")
    assert browser.value_of("document.documentElement.scrollWidth") <= width == SCREENS[screen][0]
    assert browser.count("#law-chart .scatterlayer .point") > 40
    assert browser.count("#law-chart .scatterlayer .js-line") == 6
    assert browser.count("#curve-chart .scatterlayer .js-line") == 6
    for chart in ("law-chart", "curve-chart"):
        box = browser.find(f"#{chart} .main-svg").rect
        assert 250 < box["width"] <= width
        assert box["height"] <= browser.find(f"#{chart}").rect["height"] + 1
    assert browser.value_of("performance.getEntriesByType('resource').length") == 0
    assert browser.console() == []


def test_dark_and_light_follow_the_system(page):
    def luminance(expression: str) -> float:
        colour = page.value_of(expression)
        parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        return sum(parts) / 3

    background = "getComputedStyle(document.body).backgroundColor"
    tick = "getComputedStyle(document.querySelector('#law-chart .xtick text')).fill"
    assert luminance(background) > 240
    assert luminance(tick) < 60
    page.theme("dark")
    assert luminance(background) < 40
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert luminance(tick) > 200, "the chart was drawn again"
    assert page.console() == []


def test_runs_with_hostile_names_are_only_text(page):
    assert page.value_of("window.hacked") is None
    assert any(HOSTILE in text for text in page.texts("#run-table tbody th"))
    assert page.texts("#budget-rows th").count(OWN_LABEL) == 0, "its bits are not known"
    assert OWN_LABEL in page.texts("#run-precision option")
    page.enter("x-axis", "params")
    assert OWN_LABEL in page.texts("#law-chart .legendtext")
    templates = page.value_of(
        "document.getElementById('law-chart').data.map((t) => t.hovertemplate)"
    )
    assert not [text for text in templates if "5 %{x}" in text], "its percent sign is no template"
    assert page.count(".legendtext b, .legendtext a") == 0


def curve(page: Browser, name: str) -> dict[str, Any]:
    """The law's curve of a precision as it is drawn."""
    code = "return document.getElementById('law-chart').data.filter((t) => t.mode === 'lines')"
    (found,) = [trace for trace in page.run(code) if trace["name"] == name]
    return dict(found)


def test_the_slider_moves_the_curves(page, law):
    page.enter("x-axis", "params")
    before = curve(page, "W4A4")
    for ratio in (20, 300):
        page.enter("ratio", str(page.value_of(f"Math.log2({ratio})")))
        after = curve(page, "W4A4")
        assert after["x"] == before["x"]
        expected = [float(law.loss(n, ratio * n, "4")) for n in after["x"]]
        assert after["y"] == pytest.approx(expected, rel=1e-12)
        assert page.find("#ratio-text").text == str(ratio)
    assert after["y"][0] < before["y"][0]
    drawn = page.find("#law-chart .scatterlayer .trace .js-line").get_attribute("d")
    page.enter("ratio", page.find("#ratio").get_attribute("min"))
    moved = page.find("#law-chart .scatterlayer .trace .js-line").get_attribute("d")
    assert moved != drawn


@pytest.mark.parametrize(
    ("axis", "place"),
    [
        ("memory", lambda n, d: n * 4 / 8e6),
        ("params", lambda n, d: n),
        ("tokens", lambda n, d: d),
        ("flops", lambda n, d: 6 * n * d),
    ],
)
def test_points_stand_where_they_belong(page, made, law, axis, place):
    page.enter("x-axis", axis)
    code = "return document.getElementById('law-chart').data.filter((t) => t.mode === 'markers')"
    (trace,) = [trace for trace in page.run(code) if trace["name"] == "W4A4"]
    points = [p for p in law_points(read_runs(made[1]))[0] if p.precision == "4"]
    drawn = sorted(zip(trace["x"], trace["y"], strict=True))
    expected = sorted((place(p.params, p.tokens), p.loss) for p in points)
    assert drawn == [pytest.approx(pair) for pair in expected]
    hover = next(text for text in trace["text"] if "4-100</b>" in text and "200M" in text)
    (point,) = [p for p in points if p.name == "200M-4-100"]
    predicted = float(law.loss(point.params, point.tokens, "4"))
    assert f"loss {point.loss:.4f}" in hover
    assert f"predicted {predicted:.4f}" in hover
    assert "W4A4" in hover
    own = [trace for trace in page.run(code) if "mine" in trace["name"]]
    assert len(own) == (axis != "memory")
    assert page.find("#no-memory").is_displayed() == (axis == "memory")


def test_residuals(page, made, law):
    page.enter("y-axis", "residual")
    data = page.value_of("document.getElementById('law-chart').data")
    assert {trace["mode"] for trace in data} == {"markers"}
    largest = max(abs(y) for trace in data for y in trace["y"])
    assert 0.1 < largest < 5


def test_the_legend_hides_a_precision_and_it_stays_hidden(page):
    page.run("document.getElementById('law-chart').scrollIntoView({behavior: 'instant'})")
    toggles = page.driver.find_elements("css selector", "#law-chart .legendtoggle")
    names = page.texts("#law-chart .legendtext")
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).move_to_element(toggles[names.index("W4A4")]).click().perform()
    hidden = "document.getElementById('law-chart')._fullData.filter((t) => t.visible !== true)"
    code = f"{hidden}.map((t) => t.name)"
    for _ in range(40):
        if page.value_of(code):
            break
        page.driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert page.value_of(code) == ["W4A4", "W4A4"], "points and curve"
    page.enter("ratio", "5")
    assert page.value_of(code) == ["W4A4", "W4A4"]


BUDGETS = [
    ("1.6", "80B", "", Budget(memory_bytes=1.6e9, tokens=80e9)),
    ("0.05", "3e9", "", Budget(memory_bytes=5e7, tokens=3e9)),
    ("0.05", "", "1e18", Budget(memory_bytes=5e7, flops=1e18)),
    ("", "", "3e20", Budget(flops=3e20)),
    ("", "1,000M", "2.5e19", Budget(tokens=1e9, flops=2.5e19)),
    ("0.01", "2T", "1e+17", Budget(memory_bytes=1e7, tokens=2e12, flops=1e17)),
]


@pytest.mark.parametrize(("memory", "tokens", "flops", "budget"), BUDGETS, ids=str)
def test_the_calculator_answers_as_python_does(page, law, memory, tokens, flops, budget):
    for name, value in (("memory", memory), ("tokens", tokens), ("flops", flops)):
        page.enter(f"budget-{name}", value)
    choices = plan(law, budget)
    rows = page.driver.find_elements("css selector", "#budget-rows tr")
    assert [row.get_attribute("data-precision") for row in rows] == [c.precision for c in choices]
    for row, choice in zip(rows, choices, strict=True):
        loss = float(row.get_attribute("data-loss"))
        assert loss == pytest.approx(choice.loss, rel=1e-12)
        cells = [cell.text for cell in row.find_elements("css selector", "td")]
        assert cells[5] == f"{choice.loss:.4f}"
        low, high = map(float, cells[6].split(" – "))
        assert (low, high) == pytest.approx((choice.low, choice.high), abs=6e-5)
        assert float(cells[7].rstrip("%")) == pytest.approx(100 * choice.best_share, abs=0.06)
    answer = page.find("#budget-answer").text
    assert answer.startswith(f"{label_text(choices[0].precision)}, ")
    assert f"predicted loss {choices[0].loss:.4f}" in answer
    assert ("extrapolates" in answer) == (extrapolation(law, choices[0]) is not None)


@pytest.mark.parametrize(
    ("memory", "tokens", "says"),
    [
        ("", "80B", "Give memory and tokens, or FLOPs."),
        ("", "", "Give memory and tokens, or FLOPs."),
        ("-1", "80B", "A limit is a positive number"),
        ("1", "many", "A limit is a positive number"),
        ("0", "1", "A limit is a positive number"),
        ("1", "3X", "A limit is a positive number"),
        ("1,6", "80B", "A limit is a positive number"),
        ("1", "80B & more", "A limit is a positive number"),
    ],
)
def test_the_calculator_says_what_it_needs(page, memory, tokens, says):
    page.enter("budget-memory", memory)
    page.enter("budget-tokens", tokens)
    assert says in page.find("#budget-answer").text
    assert page.texts("#budget-rows tr") == []
    wrong = page.driver.find_elements("css selector", "#budget-form [aria-invalid=true]")
    assert len(wrong) == ("positive" in says)


def column(page: Browser, head: str) -> list[str]:
    place = [text.strip() for text in page.texts("#run-table thead th")].index(head)
    code = (
        "return [...document.querySelectorAll('#run-table tbody tr')].filter((r) => !r.hidden)"
        ".map((r) => r.cells[arguments[0]].dataset.value ?? r.cells[arguments[0]].textContent)"
    )
    values: list[str] = page.run(code, place)
    return values


def sort_by(page: Browser, head: str) -> None:
    code = "[...document.querySelectorAll('#run-table thead button')]"
    page.run(f"{code}.find((b) => b.textContent === arguments[0]).click()", head)


@pytest.mark.parametrize("head", ["N", "D", "validation loss", "residual", "learning rate"])
def test_a_head_sorts_by_number_and_empty_cells_stay_last(page, head):
    for reverse in (False, True):
        sort_by(page, head)
        values = column(page, head)
        numbers = [float(value) for value in values if value]
        assert len(numbers) > 2
        assert numbers == sorted(numbers, reverse=reverse)
        assert "" not in values[: len(numbers)]
    states = page.value_of(
        "[...document.querySelectorAll('#run-table th[aria-sort]')]"
        ".map((h) => h.ariaSort).filter((s) => s !== 'none')"
    )
    assert states == ["descending"]


def test_names_sort_as_people_do_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    button = page.find("#run-table thead button")
    button.send_keys(Keys.ENTER)
    names = column(page, "run")
    assert names.index("30M-4-25") < names.index("100M-4-25") < names.index("200M-4-25")
    assert names.index("30M-4-25") < names.index("30M-4-100"), "25 before 100"
    assert page.value_of("document.activeElement.textContent") == "run"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.value_of(outline) != "none", "the keyboard's place is seen"


def test_filters_of_the_table(page, made):
    total = len(read_runs(made[1]))
    page.enter("run-status", "damaged")
    assert column(page, "run") == ["torn"]
    page.enter("run-status", "")
    page.enter("run-precision", "W4A4 LSQ")
    assert len(column(page, "run")) == 8
    page.enter("run-filter", "200m 25")
    assert column(page, "run") == ["200M-4-lsq-25"]
    assert page.find("#run-count").text == f"1 of {total} runs"
    page.enter("run-precision", "")
    page.enter("run-filter", "stopped at step")
    assert column(page, "run") == ["started"]
    page.enter("run-filter", "")
    assert len(column(page, "run")) == total


def test_filters_of_the_curves(page):
    assert page.find("#curve-count").text == "6 of 6 runs"
    page.enter("curve-filter", "run- w4a4")
    assert page.find("#curve-count").text == "1 of 6 runs"
    assert page.count("#curve-chart .scatterlayer .js-line") == 1
    page.enter("curve-filter", "nothing like this")
    assert page.count("#curve-chart .scatterlayer .js-line") == 0
    page.enter("curve-filter", "diverged")
    assert page.texts("#curve-chart .legendtext") == ["W4A4"]
    page.enter("curve-filter", "")
    ranges = "document.getElementById('curve-chart').layout.yaxis.range"
    late = page.value_of(ranges)
    page.enter("curve-y", "all")
    assert page.value_of(ranges)[1] > late[1]
    page.enter("curve-x", "linear")
    assert page.value_of("document.getElementById('curve-chart').layout.xaxis.type") == "linear"
    assert page.console() == []


@pytest.mark.parametrize("what", ["no law", "nothing complete", "one run"])
def test_pages_with_less_open_too(browser, tmp_path, what):
    if what == "no law":
        runs = write_law_table(tmp_path / "runs.csv", precisions=("4", "8"))
    elif what == "nothing complete":
        runs = finish(tmp_path / "a", status="diverged", val_loss=None)
    else:
        runs = finish(
            tmp_path / "a", "bf16", "none", metrics=[{"step": 1, "val_loss": 3.0, "tokens": 9}]
        )
    write_report(tmp_path / "page.html", [str(runs)])
    browser.show(tmp_path / "page.html", "phone")
    assert browser.console() == []
    assert browser.value_of("document.documentElement.scrollWidth") <= 390
    assert browser.find("#explore .empty").is_displayed() == (what == "nothing complete")
    assert browser.find("#budget .empty").is_displayed()
    assert not browser.find("#budget-form").is_displayed()
    points = browser.count("#law-chart .scatterlayer .point")
    assert points == {"no law": 16, "nothing complete": 0, "one run": 1}[what]
    assert browser.count("#curve-chart .scatterlayer .point") == (what == "one run")
    assert json.loads(browser.find("#report-data").get_attribute("textContent"))["law"] is None
