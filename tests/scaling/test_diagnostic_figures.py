"""Figures 2, 8 and 9: what is drawn, read back from the axes."""

import json
import statistics

import pytest
from matplotlib.colors import to_hex

from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES
from questtrain.scaling.figures.style import COLOURS, MARKERS
from tests.scaling import (
    BLOCKS,
    POINTS,
    drawn,
    legend,
    make_run,
    read_record,
    write_record,
)


def curves(axes):
    """Label → (x, y) of the drawn lines, from the legend's handles."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    data = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    return dict(zip(labels, data, strict=True))


def cells(axes):
    """(row, column) → the text written there."""
    places = {text.get_position(): text.get_text() for text in axes.texts}
    return {(int(y), int(x)): text for (x, y), text in places.items()}


# --- figure 2


def test_alignment_is_a_line_a_run_over_depth(tmp_path):
    shuffled = [BLOCKS[2], BLOCKS[0], BLOCKS[3], BLOCKS[1]]
    quest = make_run(tmp_path / "a", "alignment", blocks=shuffled)
    ste = make_run(tmp_path / "b", "alignment", method="ste", blocks=BLOCKS[:2])
    figure = drawn("alignment", quest, ste)
    (axes,) = figure.axes
    assert curves(axes) == {
        "QuEST, W8A8": ([1, 2, 3, 4], [0.9, 0.91, 0.92, 0.93]),
        "STE, W8A8": ([1, 2], [0.9, 0.91]),
    }
    assert legend(figure) == ["QuEST, W8A8", "STE, W8A8"]
    assert axes.get_title() == "Gradient alignment, 30M"
    assert "depth" in axes.get_xlabel()
    assert "cosine" in axes.get_ylabel()


def test_alignment_bars_are_one_standard_deviation(tmp_path):
    (axes,) = drawn("alignment", make_run(tmp_path / "a", "alignment")).axes
    _, _, (bars,) = axes.containers[0]
    first, *_ = bars.get_segments()
    assert first[:, 1] == pytest.approx([0.9 - 0.003, 0.9 + 0.003])


def test_seeds_merge_into_one_line_with_the_std_of_all_batches(tmp_path):
    """Equal to the std over the pooled batches, here two a seed at mean ± std."""
    means, std = (0.90, 0.94, 0.98), 0.01
    runs = [
        make_run(
            tmp_path / f"s{i}", "alignment", seed=i, blocks=[BLOCKS[0] | {"mean": m, "std": std}]
        )
        for i, m in enumerate(means)
    ]
    (line,) = FIGURES["alignment"].data(runs).lines
    assert line.label == "QuEST, W8A8 (3 seeds)"
    assert line.runs == [str(run) for run in runs]
    pooled = [mean + sign * std for mean in means for sign in (-1, 1)]
    assert line.mean == pytest.approx([0.94])
    assert line.std == pytest.approx([statistics.pstdev(pooled)])


@pytest.mark.parametrize("difference", [{"step": 2000}, {"blocks": BLOCKS[:3]}, {"bits": "w4a4"}])
def test_only_seeds_merge(tmp_path, difference):
    one = make_run(tmp_path / "a", "alignment", seed=0)
    other = make_run(tmp_path / "b", "alignment", seed=1, **difference)
    assert len(FIGURES["alignment"].data([one, other]).lines) == 2


def test_one_seed_twice_is_not_merged_and_told_apart_by_name(tmp_path):
    runs = [make_run(tmp_path / name, "alignment") for name in ("lr1", "lr2")]
    labels = [line.label for line in FIGURES["alignment"].data(runs).lines]
    assert labels == ["QuEST, W8A8, lr1", "QuEST, W8A8, lr2"]


# --- figure 8


def test_mask_is_a_line_a_run_and_one_dotted_line_where_they_agree(tmp_path):
    high = [point | {"fraction": 30 * point["fraction"]} for point in POINTS]
    quest = make_run(tmp_path / "a", "mask")
    without = make_run(tmp_path / "b", "mask", method="quest-noht", points=high[::-1])
    (axes,) = drawn("mask", quest, without).axes
    steps = [0, 200, 400, 600, 800]
    found = curves(axes)
    assert found["QuEST, W8A8"] == (steps, [point["fraction"] for point in POINTS])
    assert found["QuEST without Hadamard, W8A8"] == (steps, [p["fraction"] for p in high])
    assert found["expected for Gaussian weights"][1] == [1e-4, 1e-4]
    assert [line.get_linestyle() for line in axes.lines].count(":") == 1
    assert axes.get_yscale() == "log"


def test_mask_expectations_that_differ_wear_their_runs_colours_and_markers(tmp_path):
    runs = [
        make_run(tmp_path / "a", "mask"),
        make_run(tmp_path / "b", "mask", bits="w4a4", expected=0.007),
        make_run(tmp_path / "c", "mask", method="lsq", expected=None),
    ]
    (axes,) = drawn("mask", *runs).axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_ydata())]
    assert [list(line.get_ydata()) for line in dotted] == [[1e-4, 1e-4], [0.007, 0.007]]
    assert [to_hex(line.get_color()).upper() for line in dotted] == list(COLOURS[:2])
    assert [line.get_marker() for line in dotted] == list(MARKERS[:2])


@pytest.mark.parametrize(
    ("fractions", "expected", "scale"),
    [
        ([1e-4, 9e-4], 2e-4, "linear"),
        ([1e-4, 2e-4], 2e-3, "log"),
        ([0.0, 1e-4, 2e-3], None, "symlog"),
        ([0.0, 0.0], 0.0, "linear"),
    ],
)
def test_mask_scale_follows_the_values(tmp_path, fractions, expected, scale):
    points = [{"step": step, "fraction": value} for step, value in enumerate(fractions)]
    run = make_run(tmp_path / "a", "mask", points=points, expected=expected)
    (axes,) = drawn("mask", run).axes
    assert axes.get_yscale() == scale
    bottom, top = axes.get_ylim()
    assert bottom <= min(fractions) <= max(fractions) < top, "nothing lies outside"


def test_mask_falls_back_to_the_metrics_of_training(tmp_path):
    """Rows of other metrics, of unquantized weights, and a torn line are passed over."""
    run = make_run(tmp_path / "a", method="quest-noht", seed=3)
    mask = [
        {"step": step, "weight_masked_fraction": value, "expected_masked_fraction": 2e-4}
        for step, value in ((100, 1e-4), (200, 3e-4))
    ]
    none = {"step": 50, "weight_masked_fraction": None, "expected_masked_fraction": None}
    rows = [{"step": 1, "train_loss": 9.0}, none, *mask]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 300, "weight_mas'
    (run / "metrics.jsonl").write_text(text)
    (line,) = FIGURES["mask"].data([run]).lines
    assert (line.steps, line.fractions, line.expected) == ([100, 200], [1e-4, 3e-4], 2e-4)
    assert line.label == "QuEST without Hadamard, W8A8"
    write_record(run, "mask", read_record(make_run(tmp_path / "b", "mask"), "mask"))
    (line,) = FIGURES["mask"].data([run]).lines
    assert line.steps == [0, 200, 400, 600, 800], "a record has the last word"


def test_metrics_without_mask_rows_are_no_record(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").write_text('{"step": 1, "train_loss": 9.0}\n')
    with pytest.raises(UserError, match="nothing to draw"):
        FIGURES["mask"].data([run])


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("model: [", "line 1, column 9: no YAML"),
        ("", "holds no configuration"),
        ("model: {name: 30M}\nbits: 4", "model.nominal_params is not set"),
    ],
)
def test_a_damaged_config_under_the_fallback(tmp_path, config, part):
    run = make_run(tmp_path / "a")
    row = {"step": 1, "weight_masked_fraction": 0.1, "expected_masked_fraction": 0.1}
    (run / "metrics.jsonl").write_text(json.dumps(row))
    (run / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=part):
        FIGURES["mask"].data([run])


# --- figure 9


def test_persistence_writes_percentages_over_old_and_new_steps(tmp_path):
    """The lower triangle, and the row and column in which no pair lies, stay empty."""
    panel, bar = drawn("persistence", make_run(tmp_path / "a", "persistence")).axes
    assert cells(panel) == {(0, 0): "50%", (0, 1): "25%", (1, 1): "5.5%"}
    assert [text.get_text() for text in panel.get_yticklabels()] == ["0", "200"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["200", "1,400"]
    assert panel.get_title() == "QuEST, W8A8"
    values = panel.images[0].get_array()
    assert values.filled(-1).tolist() == [[50, 25], [-1, 5.5]]
    assert bar.get_ylabel() == "still masked"


def test_persistence_panels_share_their_colour_scale(tmp_path):
    steep = [[None, 0.8, 0.1], [0.9, None, None], [1.0, 1.0, 1.0]]
    one = make_run(tmp_path / "a", "persistence")
    other = make_run(tmp_path / "b", "persistence", method="quest-noht", retained=steep)
    first, second, _ = drawn("persistence", one, other).axes
    assert [axes.images[0].get_clim() for axes in (first, second)] == [(0, 80), (0, 80)]
    assert cells(second) == {(0, 0): "80%", (0, 1): "10%", (1, 1): "–"}
    assert second.get_title().replace("\n", " ") == "QuEST without Hadamard, W8A8"


def test_persistence_text_is_readable_on_its_cell(tmp_path):
    """White on dark cells, black on light ones."""
    panel, _ = drawn("persistence", make_run(tmp_path / "a", "persistence")).axes
    image = panel.images[0]
    for text in panel.texts:
        x, y = text.get_position()
        lightness = sum(image.to_rgba(image.get_array())[y, x, :3]) / 3
        assert text.get_color() == ("white" if lightness < 0.5 else "black")


def test_persistence_without_anything_masked(tmp_path):
    nothing = [[None, None], [None, None]]
    run = make_run(tmp_path / "a", "persistence", steps=[0, 1], retained=nothing)
    panel, _ = drawn("persistence", run).axes
    assert cells(panel) == {(0, 0): "–"}
