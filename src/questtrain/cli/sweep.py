"""``questtrain sweep``: a whole grid of runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from questtrain.cli.arguments import Arguments, parse_arguments, refuse_options
from questtrain.cli.help_page import own_settings
from questtrain.cli.hydra_config import compose_mapping, group_choices
from questtrain.cli.sweep_jobs import make_jobs
from questtrain.config import TrainConfig
from questtrain.config.loading import check_setting, config_from_mapping
from questtrain.config.ranges import Interval
from questtrain.errors import UserError, unknown
from questtrain.sweep import read_sweep, sweep_names
from questtrain.sweep.attempt import claim, forget_failure
from questtrain.sweep.console import console
from questtrain.sweep.display import (
    follow,
    plan_json,
    plan_view,
    status_json,
    status_view,
    summary,
)
from questtrain.sweep.estimate import choose_speed
from questtrain.sweep.job import Job
from questtrain.sweep.launchers import Launcher, launcher_class, queued_runs
from questtrain.sweep.manifest import read_manifest, record_jobs
from questtrain.sweep.state import State, ended, progress, read_states

HELP = """usage: questtrain sweep NAME [key=value …] [launcher=local|slurm] [options]

Trains every run of a sweep file that is not done yet, longest first; each has its folder in
runs_dir/NAME. Starting again goes on: with what a stopped run has saved, and with what is missing.
Several sweeps may work on one folder: no run is trained twice.

sweeps (or the path of your own file, ending in .yaml)
{sweeps}

settings
  any of `questtrain train`: model=30M,50M gives an axis these values, seed=0,1,2 adds one
  runs_dir          where the sweep's folder goes   [runs]
  launcher          {launchers}   [local]
  launcher.workers  runs at a time; launcher.gpus=[0,1], launcher.runs_per_gpu, launcher.threads
{settings}

options
  --dry-run         what would be trained: tokens, FLOPs, GPU-hours, memory
  --status          how far every run is; live on a terminal while something runs
  --retry-failed    runs that failed, too (a diverged one starts over)
  --json            the table as JSON
  --config-dir DIR  your own YAML files (DIR/model/my-size.yaml, DIR/launcher/our-cluster.yaml, …)
  --help            this page

examples
  questtrain sweep smoke                                     minutes on two CPU cores
  questtrain sweep scaling --dry-run gpu=A100
  questtrain sweep scaling model=30M,50M bits=w4a4,bf16 seed=0,1,2
"""


@dataclass
class SweepConfig:
    """The command's own settings (``conf/sweep.yaml``), without those of the launcher."""

    mfu: Annotated[float | None, Interval("(0, 1]"), "of the estimate; null: as measured, or 0.40"]
    gpu: Annotated[str | None, "of the estimate of GPU-hours; null: this machine's, or H100"]


@dataclass
class Request:
    """The command line, taken apart; ``words`` are all of it, options left out."""

    words: list[str]
    name: str
    runs_dir: str
    own: list[str]
    settings: list[str]
    config_dir: str | None
    json: bool

    @property
    def command(self) -> str:
        return shlex.join(["questtrain", "sweep", *self.words])


OPTIONS = ("--dry-run", "--status", "--retry-failed")


def main(words: Sequence[str]) -> int:
    chosen = {word for word in words if word in OPTIONS}
    arguments = parse_arguments([word for word in words if word not in OPTIONS])
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(sorted(chosen))}: one at a time.")
    request = parse_request(arguments)
    sweep = read_sweep(request.name)
    folder = Path(request.runs_dir).expanduser() / sweep.name
    config, launcher = _sweep_config(request)
    jobs = read_manifest(folder) if "--status" in chosen and not request.settings else None
    if jobs is None:
        jobs = make_jobs(sweep, folder, request.settings, request.config_dir)

    def states() -> list[State]:
        return read_states(jobs, queued_runs(folder))

    if "--status" in chosen:
        live = not request.json and sys.stdout.isatty()
        _show(follow(states) if live else states(), request.json)
        return 0
    if "--dry-run" in chosen:
        return _plan(states(), config, request.json)
    launcher.check(jobs)
    record_jobs(sweep, folder, jobs)
    if "--retry-failed" in chosen:
        _forget_failures(jobs)
    stopped_by = launcher.run(jobs, folder, request.command)
    if stopped_by is None:
        return 0
    ended_as = states()
    _show(ended_as, request.json)
    return _verdict(ended_as, stopped_by, request.command)


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain sweep --help`` prints."""
    titles = {name: read_sweep(name).title for name in sweep_names()}
    width = max(map(len, titles)) + 2
    return HELP.format(
        sweeps="\n".join(f"  {name:<{width}}{title}" for name, title in titles.items()),
        launchers=", ".join(group_choices("launcher")),
        settings=own_settings(SweepConfig, "sweep", width=20),
    )


def parse_request(arguments: Arguments) -> Request:
    """UserError where the sweep's name is missing."""
    words = arguments.overrides
    names = [word for word in words if "=" not in word]
    if len(names) != 1 or names[0].startswith("-"):
        refuse_options(names, *OPTIONS, "--json", "--config-dir", "--help")
        raise UserError(f"name one sweep: {', '.join(sweep_names())}, or the path of a .yaml file.")
    own, runs_dir, settings = [], [], []
    for word in words:
        key = word.partition("=")[0]
        if key == "runs_dir":
            runs_dir.append(word)
        elif key in ("mfu", "gpu", "launcher") or key.startswith("launcher."):
            own.append(word)
        elif word != names[0]:
            settings.append(word)
    mapping = compose_mapping("train", TrainConfig, runs_dir, arguments.config_dir)
    check_setting(TrainConfig, "runs_dir", mapping["runs_dir"])
    again = [] if arguments.config_dir is None else [f"--config-dir={arguments.config_dir}"]
    return Request(
        [*words, *again],
        names[0],
        mapping["runs_dir"],
        own,
        settings,
        arguments.config_dir,
        arguments.json,
    )


def _sweep_config(request: Request) -> tuple[SweepConfig, Launcher]:
    """``conf/sweep.yaml``, and the chosen launcher's file as the settings of its ``kind``."""
    chosen, own = "local", []
    for word in request.own:
        key, _, value = word.partition("=")
        if key == "launcher":
            chosen = value
        else:
            own.append(word)
    choices = group_choices("launcher", request.config_dir)
    if chosen not in choices:
        raise unknown("launcher", chosen, choices)
    group = f"+launcher={chosen}"
    plain = compose_mapping("sweep", SweepConfig, [group], request.config_dir)
    settings = [("launcher", launcher_class(plain["launcher"].get("kind")))]
    kind = make_dataclass("SweepConfigWithLauncher", settings, bases=(SweepConfig,))
    mapping = compose_mapping("sweep", kind, [group, *own], request.config_dir)
    config: Any = config_from_mapping(kind, mapping)
    return config, config.launcher


def _plan(states: list[State], config: SweepConfig, as_json: bool) -> int:
    speed = choose_speed([state.job for state in states], config.mfu, config.gpu)
    if as_json:
        print(json.dumps(plan_json(states, speed), indent=2))
    else:
        console().print(plan_view(states, speed))
    return 0


def _show(states: list[State], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status_json(states), indent=2))
        return
    console().print(status_view(states))


def _forget_failures(jobs: list[Job]) -> None:
    for job in jobs:
        descriptor = claim(job) if ended(job) == "failed" else None
        if descriptor is not None:
            forget_failure(job, descriptor)


def _verdict(states: list[State], stopped_by: int, command: str) -> int:
    """Say on standard error what failed and what is unfinished, with the command to go on."""
    failed = [state for state in states if state.status == "failed"]
    for state in failed:
        print(
            f"failed: {state.job.name}: {state.reason} (log: {state.job.log_file})", file=sys.stderr
        )
    if failed:
        print(f"to try what failed again: {command} --retry-failed", file=sys.stderr)
    if progress(states).counts["waiting"]:
        print(f"stopped; {summary(progress(states))}. Go on: {command}", file=sys.stderr)
    if stopped_by:
        return 128 + stopped_by
    return 0 if all(state.status == "done" for state in states) else 1
