"""What all figures share: files, names, labels, and the runs and records that are refused."""

import logging
import math

import pytest

from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES, figure_name
from questtrain.scaling.figures.style import COLOURS, DASHES, line_style, method_label, save
from questtrain.scaling.run_folders import find_runs
from tests.scaling import CONTENT as DIAGNOSTICS
from tests.scaling import drawn, legend, make_run, read_record, write_record
from tests.scaling.law_runs import runs_for

STARTS = {".png": b"\x89PNG", ".PDF": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".svg") for name in FIGURES), ("law", ".png"), ("mask", ".PDF")]
)
def test_files_by_suffix_are_the_same_each_time(tmp_path, name, suffix):
    runs = runs_for(name, tmp_path / "runs")
    paths = [tmp_path / "new" / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        save(drawn(name, runs), path)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(STARTS[suffix])
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
    names = {"fig1": "law", "fig2": "alignment", "fig5a": "formats", "fig9": "persistence"}
    assert {alias: figure_name(alias) for alias in names} == names
    assert [figure_name(name) for name in FIGURES] == list(FIGURES)
    with pytest.raises(
        UserError, match=r"choose from law, alignment, .*fig9.*Did you mean 'alignment'"
    ):
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
    few = [make_run(tmp_path / f"a{i}", "mask", bits=f"w{i}a{i}") for i in range(2, 7)]
    more = make_run(tmp_path / "more", "mask", method="ste")
    assert not drawn("mask", *few).legends
    wide = drawn("mask", *few, more)
    assert len(wide.legends) == 1
    assert not wide.axes[0].bbox.overlaps(wide.legends[0].get_window_extent())


def test_dollars_in_a_name_are_no_formula(tmp_path):
    """Twice the same method: the legend shows names, which a formula would fail to parse."""
    runs = [make_run(tmp_path / f"{i}$\\frac$", "mask") for i in range(2)]
    assert legend(drawn("mask", *runs))[0] == "QuEST, W8A8, 0$\\frac$"


@pytest.mark.parametrize("name", DIAGNOSTICS)
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
    ("alignment", {"blocks": None}, "'blocks' holds None; it should be a valid array"),
    ("alignment", {"blocks": []}, "'blocks' holds []; it should have at least 1 item"),
    ("alignment", {"blocks": [7]}, "blocks: '0' holds 7; it should be an object"),
    ("alignment", {"blocks": [{"block": 0, "mean": 0.9}]}, "'std' is missing"),
    (
        "alignment",
        {"blocks": [{"block": 0.5, "mean": 1, "std": 0}]},
        "holds 0.5; it should be a valid integer",
    ),
    ("alignment", {"blocks": [{"block": 0, "mean": float("nan"), "std": 0}]}, "a finite number"),
    ("alignment", {"seed": "0"}, "'seed' holds '0'; it should be a valid integer"),
    ("mask", {"points": [{"step": 0, "fraction": True}]}, "holds True; it should be"),
    ("mask", {"hadamard": 1}, "'hadamard' holds 1; it should be a valid boolean"),
    ("mask", {"method": None}, "'method' holds None; it should be a valid string"),
    ("persistence", {"steps": [0, 1]}, "'retained' must be square"),
    ("persistence", {"steps": [0], "retained": [[None]]}, "two or more 'steps'"),
    ("persistence", {"retained": [[None, "x", 0], [], []]}, "retained.0: '1' holds 'x'"),
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
        *(
            (name, key)
            for name in DIAGNOSTICS
            for key in ("name", "model", "bits", "method", "seed")
        ),
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
@pytest.mark.parametrize("name", DIAGNOSTICS)
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
