"""Figures 2, 8 and 9: what is drawn, read back from the axes, and what is refused."""

import json
import logging
import math
import statistics

import pytest
from matplotlib.colors import to_hex

from questtrain.errors import UserError
from questtrain.scaling.diagnostics import find_runs
from questtrain.scaling.figures import FIGURES, figure_name
from questtrain.scaling.figures.style import (
    COLOURS,
    DASHES,
    MARKERS,
    line_style,
    method_label,
    save,
)
from tests.scaling import BLOCKS, POINTS, make_run, read_record, write_record


def drawn(name, *runs):
    """The figure as `questtrain plot` makes it, laid out."""
    figure = FIGURES[name].draw(FIGURES[name].data(runs))
    figure.draw_without_rendering()
    return figure


def curves(axes):
    """Label → (x, y) of the drawn lines, from the legend's handles."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    data = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    return dict(zip(labels, data, strict=True))


def legend(figure):
    (found,) = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    return [text.get_text() for text in found.get_texts()]


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
        ("model: [", "cannot be read"),
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


# --- all of them


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")]
)
def test_files_by_suffix_are_the_same_each_time(tmp_path, name, suffix, start):
    run = make_run(tmp_path / "a", name)
    paths = [tmp_path / "new" / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        save(drawn(name, run), path)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(start)
    assert first == second
    assert len(list(paths[0].parent.iterdir())) == 2, "no temporary file is left"


@pytest.mark.parametrize("path", ["figure", "figure.jpg"])
def test_other_suffixes_are_refused(tmp_path, path):
    figure = drawn("mask", make_run(tmp_path / "a", "mask"))
    with pytest.raises(UserError, match=r"\.png, \.pdf or \.svg"):
        save(figure, tmp_path / path)


@pytest.mark.parametrize("taken", ["figure.png", "file"])
def test_a_place_that_cannot_be_written(tmp_path, taken):
    (tmp_path / "figure.png").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / (taken if taken == "figure.png" else "file/figure.png")
    with pytest.raises(UserError, match="cannot be written"):
        save(drawn("mask", make_run(tmp_path / "a", "mask")), path)


def test_names_and_aliases():
    names = {"fig2": "alignment", "fig8": "mask", "fig9": "persistence"}
    assert {alias: figure_name(alias) for alias in names} == names
    assert [figure_name(name) for name in FIGURES] == list(FIGURES)
    with pytest.raises(UserError, match=r"choose from alignment, .*fig9.*Did you mean 'alignment'"):
        figure_name("aligment")


@pytest.mark.parametrize(
    ("method", "hadamard", "label"),
    [
        ("quest", True, "QuEST"),
        ("quest", False, "QuEST without Hadamard"),
        ("quest-noht", False, "QuEST without Hadamard"),
        ("clip", False, "Clip"),
        ("ste", False, "STE"),
        ("ste", True, "STE with Hadamard"),
        ("lsq", False, "LSQ"),
        ("lsq-plus", False, "LSQ+"),
        ("pact", False, "PACT"),
        ("my-own", False, "my-own"),
    ],
)
def test_methods_have_names_for_readers(method, hadamard, label):
    assert method_label(method, hadamard) == label


def test_labels_say_what_tells_runs_apart(tmp_path):
    """The model where there are several; then seed, name or folder, whichever comes first."""
    runs = [
        make_run(tmp_path / "a", "mask", model="100M"),
        make_run(tmp_path / "b", "mask", seed=0),
        make_run(tmp_path / "c", "mask", seed=1),
        make_run(tmp_path / "x" / "d", "mask", bits="w4a4"),
        make_run(tmp_path / "y" / "d", "mask", bits="w4a4"),
    ]
    data = FIGURES["mask"].data(runs)
    assert data.title == "Weights outside the trust mask"
    assert [line.label for line in data.lines] == [
        "100M, QuEST, W8A8",
        "30M, QuEST, W8A8, seed 0",
        "30M, QuEST, W8A8, seed 1",
        f"30M, QuEST, W4A4, {runs[3]}",
        f"30M, QuEST, W4A4, {runs[4]}",
    ]


def test_lines_differ_without_colour():
    """Marker and dashes alone tell 40 lines apart, and no line is dotted."""
    styles = [line_style(index) for index in range(40)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 40
    assert ":" not in DASHES
    assert len(set(COLOURS)) == len(COLOURS)


def test_a_line_of_many_points_has_a_dozen_markers():
    for points in (1, 12, 13, 1000):
        start, every = line_style(5, points)["markevery"]
        assert start < every
        assert math.ceil(points / every) <= 12


def test_many_lines_put_the_legend_beside_the_panel(tmp_path):
    few = [make_run(tmp_path / f"a{i}", "mask", bits=f"w{i}a{i}") for i in range(2, 6)]
    more = make_run(tmp_path / "more", "mask", method="ste")
    assert not drawn("mask", *few).legends
    wide = drawn("mask", *few, more)
    assert len(wide.legends) == 1
    assert not wide.axes[0].bbox.overlaps(wide.legends[0].get_window_extent())


def test_dollars_in_a_name_are_no_formula(tmp_path):
    """Twice the same method: the legend shows names, which a formula would fail to parse."""
    runs = [make_run(tmp_path / f"{i}$\\frac$", "mask") for i in range(2)]
    assert legend(drawn("mask", *runs))[0] == "QuEST, W8A8, 0$\\frac$"


@pytest.mark.parametrize("name", FIGURES)
def test_runs_without_a_record_are_named_and_left_out(tmp_path, name, caplog):
    run = make_run(tmp_path / "good", name)
    empty = make_run(tmp_path / "not yet")
    with caplog.at_level(logging.WARNING):
        data = FIGURES[name].data([empty, run])
    assert len(data.lines if hasattr(data, "lines") else data.panels) == 1
    (message,) = caplog.messages
    assert f"{empty} has no {name} record" in message
    assert f"questtrain diagnose 'run={empty}' what={name}" in message
    with pytest.raises(UserError, match=f"none of the runs has a record of its {name}"):
        FIGURES[name].data([empty])


DAMAGED = [
    ("alignment", {"blocks": None}, "'blocks' holds None, not a list"),
    ("alignment", {"blocks": []}, "'blocks' is empty"),
    ("alignment", {"blocks": [7]}, "'blocks' holds 7, not an object"),
    ("alignment", {"blocks": [{"block": 0, "mean": 0.9}]}, "'std' is missing"),
    ("alignment", {"blocks": [{"block": 0.5, "mean": 1, "std": 0}]}, "holds 0.5, not a whole"),
    ("alignment", {"blocks": [{"block": 0, "mean": float("nan"), "std": 0}]}, "not a number"),
    ("alignment", {"seed": "0"}, "'seed' holds '0', not a whole number"),
    ("mask", {"points": [{"step": 0, "fraction": True}]}, "holds True, not a number"),
    ("mask", {"hadamard": 1}, "'hadamard' holds 1, not true or false"),
    ("mask", {"method": None}, "'method' holds None, not text"),
    ("persistence", {"steps": [0, 1]}, "'retained' must be square"),
    ("persistence", {"steps": [0], "retained": [[None]]}, "two or more 'steps'"),
    ("persistence", {"retained": [[None, "x", 0], [], []]}, "'retained' holds 'x'"),
]


@pytest.mark.parametrize(("name", "change", "part"), DAMAGED, ids=lambda value: str(value)[:30])
def test_damaged_records(tmp_path, name, change, part):
    """File, problem and remedy in one message."""
    run = make_run(tmp_path / "a", name, **change)
    with pytest.raises(UserError) as error:
        FIGURES[name].data([run])
    for text in (f"{name}.json is damaged", part, f"questtrain diagnose run={run} what={name}"):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, key) for name in FIGURES for key in ("name", "model", "bits", "method", "seed")),
        ("alignment", "step"),
        ("alignment", "blocks"),
        ("mask", "points"),
        ("mask", "expected"),
        ("mask", "hadamard"),
        ("persistence", "steps"),
        ("persistence", "retained"),
    ],
)
def test_missing_keys(tmp_path, name, key):
    run = make_run(tmp_path / "a", name)
    record = read_record(run, name)
    del record[key]
    write_record(run, name, record)
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        FIGURES[name].data([run])


@pytest.mark.parametrize("content", [b'{"what": "ali', b"\xff\xfe", b"[1]", b""])
@pytest.mark.parametrize("name", FIGURES)
def test_damaged_json(tmp_path, name, content):
    run = make_run(tmp_path / "a")
    (run / "diagnostics" / f"{name}.json").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        FIGURES[name].data([run])


def test_find_runs_takes_runs_and_folders_of_runs_each_once(tmp_path):
    """Directly below, in the order of the words, unfinished runs included."""
    one, two = (make_run(tmp_path / "sweep" / name) for name in ("1", "2"))
    make_run(tmp_path / "sweep" / "deeper" / "3")
    (tmp_path / "sweep" / "status.json").touch()
    alone = make_run(tmp_path / "alone")
    words = [str(alone), str(two), str(tmp_path / "sweep"), f"{alone}/"]
    assert find_runs(words) == [alone, two, one]


def test_find_runs_knows_a_run_by_its_record_too(tmp_path):
    (tmp_path / "run.json").touch()
    assert find_runs([str(tmp_path)]) == [tmp_path]


def test_folders_that_are_no_runs(tmp_path):
    run = make_run(tmp_path / "30M-w8a8-quest")
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "30M-w8a8-qest"): f"no such folder. Did you mean '{run}'?",
        str(tmp_path / "other" / "x"): "there is no such folder.",
        str(tmp_path / "empty"): "is not a run (it holds no config.yaml), nor a folder of runs",
        str(run / "config.yaml"): "is a file",
    }
    for path, part in cases.items():
        with pytest.raises(UserError) as error:
            find_runs([path])
        assert path in str(error.value)
        assert part in str(error.value)
    with pytest.raises(UserError, match="no runs given"):
        find_runs([])
