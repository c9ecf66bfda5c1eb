"""`questtrain sweep` without training: the plan and its numbers, the status, bad input."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import yaml

from questtrain.cli.arguments import Arguments, train_config
from questtrain.cli.main import main
from questtrain.config import flops_per_token, tokens, training_bytes
from questtrain.sweep import sweep_names
from tests.sweep.test_state import RECORD, trained, write


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run `questtrain sweep WORDS` in this process on folders of the test."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["sweep", *words, f"runs_dir={tmp_path}"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(sweep):
    """The one message of a bad command line."""

    def message(*words: str) -> str:
        code, output, errors = sweep(*words)
        assert (code, output) == (2, "")
        assert errors.startswith("error: ")
        return errors

    return message


def test_the_page_lists_every_sweep_with_its_title(capsys):
    assert main(["sweep"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in sweep_names())
    assert "QuEST and LSQ across bit widths, 30M" in page


def test_the_plan_agrees_with_the_arithmetic_of_the_config(sweep):
    words = ("fig11_curves", "--dry-run", "--json", "mfu=0.5", "gpu=H100")
    code, output, _ = sweep(*words, "model=30M,50M", "tokens_per_param=10")
    assert code == 0
    plan = json.loads(output)
    assert plan["totals"]["runs"] == len(plan["runs"]) == 8
    assert [run["flops"] for run in plan["runs"]] == sorted(
        (run["flops"] for run in plan["runs"]), reverse=True
    )
    for run in plan["runs"]:
        words = [f"model={run['model']}", f"bits={run['bits']}", "tokens_per_param=10"]
        config = train_config(Arguments(overrides=words))
        assert run["tokens"] == tokens(config)
        flops = flops_per_token(config.model, 32_000, config.sequence_length) * tokens(config)
        assert run["flops"] == pytest.approx(flops)
        assert run["gpu_hours"] == pytest.approx(flops / (989e12 * 0.5) / 3600)
        assert run["memory_bytes"] == training_bytes(config, 32_000)
        assert run["status"] == "waiting"
    for key in ("tokens", "flops", "gpu_hours"):
        assert plan["totals"][key] == pytest.approx(sum(run[key] for run in plan["runs"]))


def test_the_plan_as_a_table_ends_with_totals_and_what_the_hours_rest_on(sweep, tmp_path):
    _, table, _ = sweep("fig2_alignment", "--dry-run", "gpu=A100")
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["run", "model", "bits", "method"]
    assert lines[-2].startswith("3 runs")
    assert lines[-1].strip() == "GPU-hours on A100 with MFU 0.40 (an assumption)"
    assert not (tmp_path / "fig2_alignment").exists()


def test_an_own_file_and_own_sizes(sweep, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    size = "# @package _global_\nmodel: {name: mine, nominal_params: 1000000, num_layers: 2,"
    size += " hidden_size: 64, num_heads: 2}\nlr: 0.001\n"
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(size)
    (tmp_path / "own.yaml").write_text("axes: {bits: [w4a4], seed: [1, 2]}")
    words = (str(tmp_path / "own.yaml"), "--dry-run", "--json", "model=mine")
    code, output, _ = sweep(*words, f"--config-dir={tmp_path / 'conf'}")
    assert code == 0
    assert [run["name"] for run in json.loads(output)["runs"]] == [
        "mine-w4a4-quest-c4-100tpp-seed1",
        "mine-w4a4-quest-c4-100tpp-seed2",
    ]


def test_status_reads_the_manifest_and_needs_no_overrides(sweep, tmp_path):
    """Three runs that were asked for with other words: one done, one failed, one stopped."""
    from questtrain.cli.sweep_jobs import make_jobs
    from questtrain.sweep import read_sweep
    from questtrain.sweep.manifest import record_jobs

    folder = tmp_path / "fig2_alignment"
    jobs = make_jobs(read_sweep("fig2_alignment"), folder, ["tokens_per_param=1"])
    record_jobs(read_sweep("fig2_alignment"), folder, jobs)
    write(jobs[0].run_file, RECORD)
    last = {"attempts": 1, "started": "", "ended": "", "extra": []}
    write(jobs[1].attempt_file, last | {"exit_code": 1, "reason": "out of memory"})
    trained(jobs[2], jobs[2].steps // 2)
    code, output, _ = sweep("fig2_alignment", "--status", "--json")
    assert code == 0
    found = json.loads(output)
    assert found["counts"] == {"done": 1, "running": 0, "failed": 1, "waiting": 1}
    assert found["progress"] == pytest.approx(0.5, abs=0.02)
    by_status = {run["status"]: run for run in found["runs"]}
    assert by_status["done"]["val_loss"] == 3.5
    assert by_status["failed"]["reason"] == "out of memory"
    assert by_status["waiting"]["step"] == jobs[2].steps // 2
    _, table, _ = sweep("fig2_alignment", "--status")
    assert "1 done, 0 running, 1 failed, 1 waiting; 50% of the FLOPs" in table
    _, output, _ = sweep("fig2_alignment", "--status", "--json", "method=ste")
    assert json.loads(output)["counts"]["waiting"] == 1
    (folder / "sweep.json").write_text("{")
    code, _, errors = sweep("fig2_alignment", "--status")
    assert (code, "sweep.json is damaged: it cannot be read as JSON" in errors) == (2, True)


def test_a_sweep_file_that_has_changed_does_not_take_old_runs_for_new_ones(sweep, tmp_path):
    """A setting of the file is in no run's name, but in the run's own configuration."""
    file = tmp_path / "own.yaml"
    file.write_text("settings: {model: nano, lr: 0.001}\naxes: {seed: [1]}")
    _, output, _ = sweep(str(file), "--dry-run", "--json")
    (run,) = json.loads(output)["runs"]
    words = ["model=nano", "lr=0.001", "seed=1", "bits=w4a4", "model.vocab_size=512"]
    config = train_config(Arguments(overrides=words))
    folder = tmp_path / "own" / run["name"]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert sweep(str(file), "--dry-run")[0] == 0
    file.write_text("settings: {model: nano, lr: 0.002}\naxes: {seed: [1]}")
    code, _, errors = sweep(str(file), "--dry-run")
    assert code == 2
    assert "holds a run with lr=0.001, and the sweep now asks for lr=0.002" in errors


def test_the_same_run_twice_is_refused_with_both_names(refused, tmp_path):
    message = refused("fig2_alignment", "--dry-run", "bits=bf16,w16a16", "method=quest")
    assert "two points of fig2_alignment are the same run" in message
    assert "bits=bf16" in message
    assert "bits=w16a16" in message
    message = refused("fig2_alignment", "--dry-run", "bits=bf16")
    assert "method=ste" in message
    assert "method=quest-noht" in message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("fig3_lsqq",), ["unknown sweep 'fig3_lsqq'", "Did you mean 'fig3_lsq'?"]),
        (("seed=1",), ["name one sweep"]),
        (("fig3_lsq", "fig2_alignment"), ["name one sweep"]),
        (("fig3_lsq", "--dryrun"), ["unknown option '--dryrun'", "Did you mean '--dry-run'?"]),
        (("fig3_lsq", "--dry-run", "--status"), ["--dry-run and --status: one at a time"]),
        (("fig3_lsq", "name=a"), ["every run gets a name of its own"]),
        (("fig3_lsq", "sed=1"), ["unknown setting 'sed'", "Did you mean 'seed'?"]),
        (("fig3_lsq", "bits=w9a9"), ["bits=w9a9", "w9a9"]),
        (("fig3_lsq", "model=110M"), ["unknown model '110M'", "Did you mean '100M'?"]),
        (("fig3_lsq", "launcher=slrm"), ["unknown launcher 'slrm'", "Did you mean 'slurm'?"]),
        (("fig3_lsq", "launcher.worker=1"), ["Did you mean 'launcher.workers'?"]),
        (("fig3_lsq", "launcher.workers=two"), ["launcher.workers='two' must be a whole number"]),
        (("fig3_lsq", "launcher=slurm", "launcher.workers=1"), ["'launcher.workers'"]),
        (("fig8_mask", "--dry-run", "mfu=40"), ["mfu=40.0 must be positive and at most 1"]),
        (("fig8_mask", "optim.beta1=0.9,1.5"), ["optim.beta1=1.5 must be at least 0"]),
        (("fig8_mask", "model.name=../x"), ["model.name='../x' is no name"]),
        (("fig8_mask", "data.name=a/b"), ["data.name='a/b' is no name"]),
        (("fig8_mask", "optim=null"), ["unknown optim 'null': choose from adamw"]),
        (("fig8_mask", "quant.skip=['*']"), ["leaves no layer"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_mistake_is_one_message(refused, words, parts):
    message = refused(*words)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


@pytest.mark.parametrize("key", ["name", "runs_dir"])
def test_a_sweep_file_has_no_place_for_names_and_folders(refused, tmp_path, key):
    (tmp_path / "own.yaml").write_text(f"settings: {{{key}: a}}\naxes: {{seed: [1]}}")
    assert f"settings: {key} is not for a sweep file" in refused(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("axes", "part"),
    [
        ("{model.name: [../../x]}", "model.name='../../x' is no name"),
        ("{data.name: ['..']}", "data.name='..' is no name"),
        ("{optim.eps: [1e-8, .nan]}", "optim.eps=nan must be at least 1e-30"),
        ("{schedule.name: [cosine, linear]}", "unknown schedule.name 'linear'"),
        ("{train.threads: [0]}", "train.threads=0 must be at least 1"),
    ],
)
def test_a_sweep_files_axes_are_judged_like_settings(refused, tmp_path, axes, part):
    (tmp_path / "own.yaml").write_text(f"settings: {{model: 30k}}\naxes: {axes}\n")
    assert part in refused(str(tmp_path / "own.yaml"), "data=stdlib")
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"], "nothing is written"


def test_a_sweeps_name_is_a_folders(refused, tmp_path):
    (tmp_path / "..yaml").write_text("axes: {seed: [0]}\n")
    assert "the sweep's name='.' is no name" in refused(str(tmp_path / "..yaml"))


def test_a_sweep_needs_a_folder_for_its_runs(capsys):
    assert main(["sweep", "smoke", "--dry-run", "runs_dir="]) == 2
    assert "runs_dir is empty" in capsys.readouterr().err


def test_a_name_that_no_file_system_takes_is_refused(refused):
    keys = ("optim.weight_decay", "optim.gradient_clip", "schedule.warmup_fraction")
    keys += (
        "schedule.start_ratio",
        "schedule.final_ratio",
        "optim.beta1",
        "data.validation_fraction",
    )
    many = [f"{key}=0.1234567890123" for key in keys]
    assert "too long for a file system" in refused("fig2_alignment", "--dry-run", *many)
