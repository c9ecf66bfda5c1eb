"""What the command line's words make of a sweep file."""

from __future__ import annotations

import pytest

from questtrain.errors import UserError
from questtrain.sweep import points, read_sweep
from questtrain.sweep.override import parse_overrides, with_overrides

GRID = """
settings: {model: 30M, lr: 0.001}
axes:
  method: [quest, lsq]
  bits: [w1a1, w2a2]
exclude:
  - {method: lsq, bits: w1a1}
include:
  - {bits: bf16}
  - {bits: w8a8, method: lsq}
"""


@pytest.fixture
def changed(tmp_path):
    """The points of a sweep with the words, each as its values in the order of ``keys``."""

    def expand(words: list[str], keys: str = "method bits", text: str = GRID) -> list[tuple]:
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        sweep = with_overrides(read_sweep(str(file)), parse_overrides(words, ("data.files",)))
        return [tuple(point.get(key) for key in keys.split()) for point in points(sweep)]

    return expand


def test_without_words_nothing_changes(changed):
    grid = [("quest", "w1a1"), ("quest", "w2a2"), ("lsq", "w2a2")]
    assert changed([]) == [*grid, (None, "bf16"), ("lsq", "w8a8")]


def test_an_axis_gets_other_values_and_included_points_that_contradict_go(changed):
    """The exclude rule of w1a1 matches nothing any more, which is no error then."""
    assert changed(["bits=w3a3"]) == [("quest", "w3a3"), ("lsq", "w3a3")]
    assert changed(["method=quest"]) == [("quest", "w1a1"), ("quest", "w2a2"), (None, "bf16")]


def test_an_included_point_that_the_new_values_make_twice_is_refused(changed):
    with pytest.raises(UserError, match="the same point twice"):
        changed(["bits=w8a8"])


def test_one_value_of_no_axis_is_of_every_point(changed):
    assert {lr for (lr,) in changed(["lr=2e-3"], "lr")} == {0.002}
    assert {seed for (seed,) in changed(["seed=3"], "seed")} == {3}


def test_several_values_of_no_axis_are_a_new_axis_also_for_included_points(changed):
    found = changed(["seed=0,1", "bits=w2a2,bf16"], "bits method seed")
    assert found == [
        ("w2a2", "quest", 0),
        ("w2a2", "quest", 1),
        ("bf16", "quest", 0),
        ("bf16", "quest", 1),
        ("w2a2", "lsq", 0),
        ("w2a2", "lsq", 1),
        ("bf16", "lsq", 0),
        ("bf16", "lsq", 1),
        ("bf16", None, 0),
        ("bf16", None, 1),
    ]
    assert {model for (model,) in changed(["model=50M,100M"], "model")} == {"50M", "100M"}


def test_a_rule_on_a_setting_holds_only_for_its_value(changed):
    text = "settings: {seed: 0}\naxes: {bits: [w1a1, w2a2]}\nexclude: [{seed: 0, bits: w1a1}]"
    assert changed([], "bits seed", text) == [("w2a2", 0)]
    assert changed(["seed=1"], "bits seed", text) == [("w1a1", 1), ("w2a2", 1)]
    assert changed(["seed=0,1"], "bits seed", text) == [("w1a1", 1), ("w2a2", 0), ("w2a2", 1)]


def test_words_are_read_as_a_file_would_be():
    found = parse_overrides(
        ["max_steps=null", "a=true,False", "b=1,1e-3,inf", "c=[1,2]", "d='x,y'", "data.files=1,2"],
        ("data.files",),
    )
    assert found["max_steps"] == (None,)
    assert found["a"] == (True, False)
    assert found["b"] == (1, 0.001, float("inf"))
    assert found["c"] == ("[1,2]",)
    assert found["d"] == ("'x,y'",)
    assert found["data.files"] == ("1,2",)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bits"], "'bits' is not a setting: write key=value"),
        (["+model.x=1"], "is not a setting"),
        (["name=a"], "every run gets a name of its own"),
        (["seed=1", "seed=2"], "seed is given twice: write seed=A,B"),
        (["seed=1,"], "an empty value between its commas"),
    ],
)
def test_a_mistake_is_one_line(words, part):
    with pytest.raises(UserError) as caught:
        parse_overrides(words)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
