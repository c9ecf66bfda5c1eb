"""The page as text: what is on it, that nothing escapes into it, that it needs nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from questtrain.scaling.fit import fit_law
from questtrain.scaling.law import Law
from questtrain.scaling.points import law_points
from questtrain.scaling.report.content import Content, default_title, gather
from questtrain.scaling.report.drawings import inline_svg
from questtrain.scaling.report.page import page
from questtrain.scaling.runs import read_runs
from tests.scaling.law_runs import finish, write_law_table, write_table
from tests.scaling.report import HOSTILE, OWN_LABEL, TITLE, make_page
from tests.scaling.synthetic import grid

VOID = {"meta", "link", "input", "img", "br", "hr"}
LOADERS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction"}


class Reader(HTMLParser):
    """Elements with their attributes, the texts inside them, and whether all of them end."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        """What is to be read: no scripts, no styles."""
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, list[str]]:
    path, runs = make_page(tmp_path_factory.mktemp("report"))
    return path.read_text(encoding="utf-8"), runs


@pytest.fixture(scope="module")
def read(made) -> Reader:
    return Reader(made[0])


@pytest.fixture(scope="module")
def law(made) -> Law:
    return fit_law(law_points(read_runs(made[1]))[0])


def data_of(document: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', document)
    return json.loads(found[1])


def test_every_element_ends_and_every_id_is_one(read):
    assert read.open == []
    ids = Counter(attributes["id"] for _, attributes in read.elements if attributes.get("id"))
    assert [name for name, times in ids.items() if times > 1] == []
    targets = [a["href"][1:] for tag, a in read.elements if tag == "a"]
    assert len(targets) == 6
    assert set(targets) <= ids.keys()
    labelled = [a["aria-labelledby"] for _, a in read.elements if "aria-labelledby" in a]
    assert set(labelled) <= ids.keys()


def test_nothing_is_loaded(made, read):
    """No attribute that loads has an address, no style either; the policy forbids all of it."""
    for tag, attributes in read.elements:
        for name in LOADERS & attributes.keys():
            assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert not re.search(r"url\((?!#)|@import", attributes.get("style") or "")
    styles = [text for tag, text in read.texts if tag == "style"]
    assert not [style for style in styles if re.search(r"url\(|@import|https?:", style)]
    (policy,) = [a["content"] for tag, a in read.elements if "http-equiv" in a]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_it_is_small(made):
    assert len(made[0].encode()) < 8e6


def test_the_head_says_what_was_measured(made, read):
    text = read.text()
    assert (
        f"<title>{TITLE.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}"
        in (made[0])
    )
    for status in ("4 completed", "1 diverged", "1 unfinished", "1 damaged"):
        count = int(status[0]) + (49 if "completed" in status else 0)
        assert f"{count} {status[2:]}" in text
    assert "c4" in text
    assert f"questtrain report {' '.join(made[1])} -o page.html" in text


def test_the_law_has_its_numbers_and_intervals(read, law):
    text = re.sub(r"\s+", " ", read.text())
    assert f"{100 * law.rms_log_residual:.2f}%" in text
    assert f"{100 * law.leave_one_out:.2f}%" in text
    assert "90% interval" in text
    eff = law.eff["4"]
    assert f"{eff.value:.3f} {eff.low:.3f} – {eff.high:.3f}" in text
    assert f"{eff.value / 4:.3f} {eff.low / 4:.3f} – {eff.high / 4:.3f}" in text
    assert law.warnings
    for warning in law.warnings:
        assert warning in text


def test_runs_are_text_whatever_they_are_called(made, read):
    document = made[0]
    assert HOSTILE in " ".join(text for _, text in read.texts)
    assert "<script>window" not in document
    assert "<img" not in document
    assert not [a for _, a in read.elements if "onerror" in a]
    data = data_of(document)
    assert HOSTILE in [point[0] for point in data["points"]]
    assert HOSTILE in [curve["name"] for curve in data["curves"]]
    assert OWN_LABEL in [look["text"] for look in data["precisions"]]


def test_the_table_shows_every_run_and_what_is_wrong(made, read):
    rows = [a for tag, a in read.elements if tag == "tr" and "data-status" in a]
    assert len(rows) == len(read_runs(made[1]))
    assert Counter(row["data-status"] for row in rows)["completed"] == 53
    text = read.text()
    assert "run.json: it cannot be read as JSON" in text
    assert "stopped at step 500, or still training" in text
    heads = [a for tag, a in read.elements if tag == "th"]
    assert all(a["scope"] in ("col", "row") for a in heads)


def test_the_scripts_get_the_law_that_python_has(made, law):
    data = data_of(made[0])
    numbers = data["law"]["numbers"]
    assert numbers["A"] == law.A.value
    assert numbers["eff 4"] == law.eff["4"].value
    assert data["law"]["draws"].keys() == law.draws.keys()
    for name, draws in data["law"]["draws"].items():
        assert draws == pytest.approx(list(law.draws[name]), rel=1e-7)
    assert data["law"]["paramsRange"] == list(law.params_range)


def test_figures_have_a_caption_and_a_command(made, read):
    drawn = [a for tag, a in read.elements if tag == "svg"]
    assert len(drawn) >= 5
    assert all(a["role"] == "img" and a["aria-label"] for a in drawn)
    text = read.text()
    for name in ("law", "efficiency", "memory", "table1", "curves"):
        assert f"questtrain plot {name} {' '.join(made[1])}" in text
    assert "not drawn: pact" in text


def test_the_same_runs_give_the_same_page(made):
    contents = [gather(made[1], None, ["x"]) for _ in range(2)]
    first, second = (page(replace(content, date="today")) for content in contents)
    assert first == second


def content_of(paths: list[Path]) -> tuple[Content, str]:
    content = gather([str(path) for path in paths], None, [])
    return content, page(content)


def test_without_a_law_the_page_says_why(tmp_path):
    """No reference: the points are still there."""
    table = write_law_table(tmp_path / "runs.csv", precisions=("4", "8"), ratios=(100,))
    content, document = content_of([table])
    assert content.law is None
    text = Reader(document).text()
    assert "No law:" in text
    assert "no run of the reference precision 16" in text
    data = data_of(document)
    assert data["law"] is None
    assert len(data["points"]) == 8
    assert "plotly.js v" in document


def test_without_a_complete_run_there_is_still_a_page(tmp_path):
    finish(tmp_path / "runs" / "a", status="diverged", val_loss=None, device="Some GPU")
    content, document = content_of([tmp_path / "runs"])
    text = Reader(document).text()
    assert "none of the runs is complete" in text
    assert "Some GPU" in text
    assert content.points == []
    assert "plotly.js v" not in document, "there is nothing to plot"


def test_a_law_of_the_reference_alone(tmp_path):
    table = write_law_table(tmp_path / "runs.csv", precisions=("16",), ratios=(25, 50, 100))
    content, document = content_of([table])
    assert content.law.eff == {}
    assert list(data_of(document)["law"]["numbers"]) == ["A", "alpha", "B", "beta", "E"]


def test_a_law_that_needs_every_point_has_no_intervals(tmp_path):
    """Five points for five numbers: there is no residual to resample."""
    points = grid(sizes=(1e6, 3e7, 1e9), ratios=(1, 30, 1000), precisions=["16"])
    rows = [
        {
            "non_embedding_params": p.params,
            "tokens": p.tokens,
            "precision": "16",
            "val_loss": p.loss,
        }
        for p in (points[k] for k in (0, 1, 2, 3, 6))
    ]
    content, document = content_of([write_table(tmp_path / "runs.csv", rows)])
    assert content.law.confidence is None
    assert data_of(document)["law"]["draws"] == {}
    assert "90% interval" not in Reader(document).text()


def test_titles(tmp_path):
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).mkdir()
    paths = [str(tmp_path / name) for name in ("one", "two", "three", "four")]
    assert default_title(paths[:1]) == "one"
    assert default_title(paths) == "one, two, three and 1 more"
    for wrong in ("{", "[]", '{"title": 3}', '{"title": " "}'):
        (tmp_path / "two" / "sweep.json").write_text(wrong)
        assert default_title(paths[:2]) == "one, two"
    (tmp_path / "two" / "sweep.json").write_text('{"title": "Mine"}')
    assert default_title(paths) == "Mine"


def test_many_values_of_one_column_are_counted(tmp_path):
    rows = [
        {"non_embedding_params": 1e6, "tokens": 1e7, "precision": "16", "val_loss": 4, "device": d}
        for d in ("A", "A", "B", "C", "D", "E", "F")
    ]
    text = Reader(content_of([write_table(tmp_path / "t.csv", rows)])[1]).text()
    assert "A (2), B (1), C (1), D (1) and 2 more" in text


def test_ids_of_two_drawings_do_not_meet():
    svg = '<?xml?><svg viewBox="0 0 9 9"><metadata>x</metadata><g id="a"/><use xlink:href="#a"/>'
    svg += '<path clip-path="url(#a)"/></svg>'
    made = inline_svg("law", 'the "law"', svg)
    assert made.startswith('<svg role="img" aria-label="the &quot;law&quot;" viewBox')
    assert 'id="law-a"' in made
    assert 'xlink:href="#law-a"' in made
    assert "url(#law-a)" in made
    assert "metadata" not in made
