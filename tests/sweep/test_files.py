"""The packaged sweeps: every point is a run that can start, and the grids are the paper's."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from questtrain.cli.arguments import Arguments, train_config
from questtrain.config import TrainConfig, flops_per_token, non_embedding_params, tokens
from questtrain.sweep import overrides, points, read_sweep, sweep_names

README = Path(__file__).parents[2] / "sweeps" / "README.md"
RUNS = {
    "fig2_alignment": 3,
    "fig3_lsq": 10,
    "fig5a_formats": 22,
    "fig5b_weight_only": 20,
    "fig5c_hadamard": 48,
    "fig8_mask": 2,
    "fig10_trust_scale": 22,
    "fig11_curves": 4,
    "fig12_pact": 25,
    "mini": 50,
    "scaling": 54,
    "smoke": 20,
    "table2_hellaswag": 12,
    "table4_lsq_wd": 12,
}
FEEDS = {"mini": "fig1", "scaling": "fig1", "smoke": "fig1"}
"""The figure of a sweep whose name does not begin with it."""


@cache
def configs(name: str) -> list[TrainConfig]:
    """The composed and validated config of every point, in order."""
    return [train_config(Arguments(overrides=overrides(p))) for p in points(read_sweep(name))]


def counts(name: str, *keys: str) -> Counter[tuple]:
    """How many points have each combination of the keys' values."""
    return Counter(tuple(point.get(key) for key in keys) for point in points(read_sweep(name)))


def test_every_file_is_counted_here():
    assert sweep_names() == list(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_every_file_says_what_it_is(name):
    sweep = read_sweep(name)
    assert len(points(sweep)) == RUNS[name]
    assert sweep.title != name
    assert sweep.paper is not None
    assert sweep.figure == FEEDS.get(name, name.partition("_")[0])
    rows = [line for line in README.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert [row.split("|")[-3:-1] for row in rows] == [[f" {sweep.paper} ", f" {RUNS[name]} "]]


@pytest.mark.parametrize("name", RUNS)
def test_every_point_is_a_valid_run_with_a_name_of_its_own(name):
    names = [config.name for config in configs(name)]
    assert len(set(names)) == len(names) == RUNS[name]


@pytest.mark.parametrize("name", RUNS)
def test_an_unquantized_point_has_no_method(name):
    """It would mean nothing there, and stand in no run's name."""
    assert not [p for p in points(read_sweep(name)) if p.get("bits") == "bf16" and "method" in p]


def test_the_methods_differ_in_the_composed_config():
    """`method` reaches the config: one `quant` group per choice, in the order of the file."""
    assert [c.quant.method for c in configs("fig2_alignment")] == ["ste", "quest-noht", "quest"]
    assert {c.quant.method for c in configs("table4_lsq_wd")} == {"lsq"}


def test_figure_2_takes_2_7_billion_tokens_and_figure_12_a_tenth():
    assert [tokens(c) for c in configs("fig2_alignment")] == pytest.approx([2.7e9] * 3, rel=1e-3)
    assert {c.tokens_per_param for c in configs("fig12_pact")} == {10}


def test_figure_3_has_no_1_bit_lsq():
    found = counts("fig3_lsq", "method", "bits")
    assert ("lsq", "w1a1") not in found
    assert found["quest", "w1a1"] == found["lsq", "w8a8"] == found[None, "bf16"] == 1


def test_figure_5a_stops_fp4_at_200m():
    """Six sizes of every format but FP4."""
    sizes = {bits: count for (bits,), count in counts("fig5a_formats", "bits").items()}
    assert sizes == {"w4a4": 6, "fp4": 4, "w4s24a4": 6, "bf16": 6}
    fp4 = {c.model.name for c in configs("fig5a_formats") if "fp4" in c.bits}
    assert fp4 == {"30M", "50M", "100M", "200M"}


def test_figure_5c_has_the_published_sizes():
    """The number of sizes from 30M up, by method and bits."""
    order = ["30M", "50M", "100M", "200M", "430M", "800M"]
    published = {
        ("quest-noht", "w1a1"): 5,
        ("quest-noht", "w2a2"): 4,
        ("quest-noht", "w3a3"): 5,
        ("quest-noht", "w4a4"): 6,
        ("quest-noht", "w8a8"): 4,
        ("quest", "w1a1"): 6,
        ("quest", "w2a2"): 4,
        ("quest", "w3a3"): 5,
        ("quest", "w4a4"): 6,
        ("quest", "w8a8"): 3,
    }
    expected = {(*key, size) for key, count in published.items() for size in order[:count]}
    assert set(counts("fig5c_hadamard", "method", "bits", "model")) == expected


def test_the_laws_own_grid_is_the_papers():
    """How many sizes from 30M up each precision has, by tokens a parameter."""
    order = ["30M", "50M", "100M", "200M", "430M", "800M"]
    published = {
        ("w1a1", 100): 6,
        ("w2a2", 100): 4,
        ("w3a3", 100): 5,
        ("w4a4", 100): 6,
        ("w8a8", 100): 3,
        ("bf16", 100): 6,
    } | {(bits, ratio): 4 for bits in ("w2a2", "w3a3", "w4a4") for ratio in (25, 50)}
    expected = {(*key, size) for key, count in published.items() for size in order[:count]}
    assert set(counts("scaling", "bits", "tokens_per_param", "model")) == expected


def test_the_smoke_grid_can_determine_a_law_and_is_small():
    """Sizes, token counts and precisions, the reference among them; less than a CPU can do in
    ten minutes (two cores at 20 GFLOP/s)."""
    assert len(counts("smoke", "model")) >= 3
    assert len(counts("smoke", "tokens_per_param")) >= 2
    assert {"bf16", "w4a4", "w1a1"} <= {bits for (bits,) in counts("smoke", "bits")}
    assert len({non_embedding_params(c.model) for c in configs("smoke")}) >= 3
    flops = sum(tokens(c) * flops_per_token(c.model, 1024, 128) for c in configs("smoke"))
    assert flops < 600 * 2 * 20e9


def test_figure_10_steps_by_a_twentieth():
    scales = [c.quant.trust_scale for c in configs("fig10_trust_scale")]
    assert scales == pytest.approx([1 + 0.05 * i for i in range(11)] * 2)


def test_the_searches_span_their_squares():
    """Every value of one setting with every value of the other."""
    for name, first, second in (
        ("fig12_pact", "quant.lr_scale", "quant.scale_weight_decay"),
        ("table4_lsq_wd", "bits", "quant.scale_weight_decay"),
    ):
        assert set(counts(name, first, second).values()) == {1}
