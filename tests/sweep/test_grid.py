"""What a sweep file means, and the one message that each mistake in it gets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from questtrain.cli.arguments import Arguments, train_config
from questtrain.errors import UserError
from questtrain.sweep import overrides, points, read_sweep, sweep_names

GRID = """
title: two axes
paper: figure 3
figure: fig3
settings: {model: 30M, seed: 1}
axes:
  method: [quest, lsq]
  bits: [w1a1, w2a2]
"""


@pytest.fixture
def sweep_of(tmp_path):
    """Write a text as a sweep file and read it."""

    def read(text: str):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return read_sweep(str(tmp_path / "mine.yaml"))

    return read


def brief(sweep) -> list[tuple]:
    """(method, bits, seed) of each point."""
    return [(p.get("method"), p["bits"], p["seed"]) for p in points(sweep)]


def test_the_first_axis_is_the_slowest_and_settings_come_with_every_point(sweep_of):
    sweep = sweep_of(GRID)
    assert (sweep.name, sweep.title) == ("mine", "two axes")
    assert (sweep.paper, sweep.figure) == ("figure 3", "fig3")
    assert points(sweep)[0] == {"model": "30M", "seed": 1, "method": "quest", "bits": "w1a1"}
    assert brief(sweep) == [
        ("quest", "w1a1", 1),
        ("quest", "w2a2", 1),
        ("lsq", "w1a1", 1),
        ("lsq", "w2a2", 1),
    ]


def test_a_points_own_values_win_over_settings(sweep_of):
    sweep = sweep_of("settings: {bits: w4a4, seed: 1}\naxes: {seed: [2]}\ninclude: [{bits: bf16}]")
    assert points(sweep) == [{"bits": "w4a4", "seed": 2}, {"bits": "bf16", "seed": 1}]


def test_exclude_takes_out_all_that_agree_and_leaves_include_alone(sweep_of):
    rest = "include: [{bits: w8a8, method: lsq}]"
    assert brief(sweep_of(f"{GRID}exclude: [{{method: lsq}}]\n{rest}")) == [
        ("quest", "w1a1", 1),
        ("quest", "w2a2", 1),
        ("lsq", "w8a8", 1),
    ]
    assert len(points(sweep_of(GRID + "exclude: [{method: lsq, bits: w1a1}]"))) == 3
    two_rules = "exclude: [{method: lsq, bits: w1a1}, {bits: w2a2, model: 30M}]"
    assert brief(sweep_of(GRID + two_rules)) == [("quest", "w1a1", 1)]


def test_only_axes_are_required(sweep_of):
    sweep = sweep_of("axes: {seed: [0, 1]}")
    assert (sweep.title, sweep.paper, sweep.figure) == ("mine", None, None)
    assert points(sweep) == [{"seed": 0}, {"seed": 1}]


def test_true_is_not_one_but_one_is_one_point_zero(sweep_of):
    sweep = sweep_of("axes: {quant.trust_scale: [1, 2], compile: [true, 1]}")
    kept = replace(sweep, exclude=({"compile": True}, {"quant.trust_scale": 2.0}))
    assert points(kept) == [{"quant.trust_scale": 1, "compile": 1}]


@pytest.mark.parametrize("key", ["quant.trust_error", "lr", "quant.trust_scale"])
@pytest.mark.parametrize("value", [1e-8, 1.05, 0.1 + 0.2, 3, 1e16, 2.5e-323, 1.0])
def test_the_command_line_reads_the_same_number_back(key, value):
    config = train_config(Arguments(overrides=overrides({key: value})))
    part, _, name = key.rpartition(".")
    assert getattr(getattr(config, part) if part else config, name) == value


def test_words_of_inf_booleans_null_and_text():
    point = {"quant.trust_scale": math.inf, "compile": True, "max_steps": None, "bits": "w4a4"}
    words = overrides(point)
    assert words == ["quant.trust_scale=inf", "compile=true", "max_steps=null", "bits=w4a4"]
    config = train_config(Arguments(overrides=words))
    assert config.quant.trust_scale == math.inf
    assert (config.compile, config.max_steps, config.bits) == ("true", None, "w4a4")
    assert overrides({"compile": False, "lr": "1e-3"}) == ["compile=false", "lr=1e-3"]


def test_names_are_in_the_papers_order():
    names = sweep_names()
    assert names.index("fig3_lsq") < names.index("fig10_trust_scale")
    assert read_sweep("fig3_lsq").name == "fig3_lsq"


MISTAKES = [
    ("axes: [a", ["cannot be read", "line 1"]),
    ("axes: {seed: [2025-13-01]}", ["cannot be read"]),
    ("", ["a sweep file is a mapping of title, paper"]),
    ("- a", ["a sweep file is a mapping"]),
    ("axis: {seed: [1]}", ["unknown key 'axis'", "title, paper", "Did you mean 'axes'?"]),
    ("1: 2", ["unknown key '1'"]),
    ("title: 3\naxes: {seed: [1]}", ["title: 3 is not text"]),
    ("title: empty", ["axes: at least one is needed"]),
    ("axes: {}", ["axes: at least one is needed"]),
    ("axes: [seed]", ["axes: at least one is needed"]),
    ("axes: {seed: 1}", ["seed must be a list"]),
    ("axes: {seed: []}", ["seed must be a list"]),
    ("axes: {seed: [[1, 2]]}", ["axes: seed=[1, 2] is not a single value"]),
    ("axes: {seed: [{a: 1}]}", ["is not a single value"]),
    ("axes: {seed: [2025-01-01]}", ["is not a single value"]),
    ("axes: {sed: [1]}", ["axes: unknown setting 'sed'", "Did you mean 'seed'?"]),
    ("axes: {quant.trust: [1]}", ["'quant.trust'", "Did you mean 'quant.trust_scale'?"]),
    ("axes: {modell: [30M]}", ["Did you mean 'model'?"]),
    ("axes: {1: [1]}", ["unknown setting 1."]),
    ("settings: {bitz: w4a4}\naxes: {seed: [1]}", ["settings: unknown setting", "'bits'"]),
    ("settings: {quant: {skip: a}}\naxes: {seed: [1]}", ["settings: unknown setting 'quant'"]),
    ("settings: {bits: [w4a4]}\naxes: {seed: [1]}", ["settings: bits=", "not a single value"]),
    ("settings: [seed]\naxes: {seed: [1]}", ["settings: ['seed'] is not a mapping"]),
    ("axes: {seed: [1]}\ninclude: {seed: 2}", ["include: write a list of mappings"]),
    ("axes: {seed: [1]}\ninclude: [3]", ["include: 3 is not a mapping"]),
    ("axes: {seed: [1]}\ninclude: [{sed: 2}]", ["include: unknown setting", "'seed'"]),
    ("axes: {seed: [1]}\nexclude: [{}]", ["exclude: write a list of mappings"]),
    ("axes: {seed: [1]}\nexclude: [{seed: [1]}]", ["exclude: seed=[1] is not a single value"]),
    (GRID + "exclude: [{metod: lsq}]", ["neither an axis nor a setting", "'method'?"]),
    (GRID + "exclude: [{lr: 1.0}]", ["exclude: 'lr' is neither"]),
    (GRID + "exclude: [{bits: w3a3}]", ["exclude: no combination has bits=w3a3"]),
    (GRID + "exclude: [{method: lsq, seed: 2}]", ["no combination has method=lsq seed=2"]),
    ("axes: {seed: [1]}\nexclude: [{seed: 1}]", ["exclude leaves no point"]),
    ("axes: {seed: [1, 1.0]}", ["the same point twice: seed=1.0"]),
    (GRID + "include: [{bits: w2a2, method: lsq}]", ["twice: model=30M seed=1 bits=w2a2"]),
]


@pytest.mark.parametrize(("text", "parts"), MISTAKES, ids=lambda value: str(value).strip()[-50:])
def test_a_mistake_is_one_line_that_names_the_file(text, parts, sweep_of):
    with pytest.raises(UserError) as caught:
        sweep_of(text)
    message = str(caught.value)
    assert message.partition(": ")[0].endswith("mine.yaml")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_sweep_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown sweep 'fig3-lsq': .*Did you mean 'fig3_lsq'\?"):
        read_sweep("fig3-lsq")
    with pytest.raises(UserError, match=r"no such file\. Did you mean 'fig3_lsq'\?"):
        read_sweep(str(tmp_path / "fig3_lqs.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml: cannot be read: Is a directory"):
        read_sweep(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    with pytest.raises(UserError, match=r"latin\.yaml: cannot be read"):
        read_sweep(str(tmp_path / "latin.yaml"))
