"""From a sweep's points to its jobs: each resolved, named, and compared with what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from questtrain.cli.arguments import checked_config
from questtrain.cli.grid_configs import GridConfigs
from questtrain.cli.hydra_config import FREE_TEXT
from questtrain.cli.info import describe
from questtrain.cli.initial_model import compose_run
from questtrain.cli.run_name import run_name
from questtrain.config import TrainConfig, is_operational, quantizes
from questtrain.config.loading import flatten, read_config
from questtrain.errors import UserError
from questtrain.sweep import overrides, points
from questtrain.sweep.grid import Sweep
from questtrain.sweep.job import Job, longest_first
from questtrain.sweep.override import parse_overrides, with_overrides

MAX_NAME_BYTES = 200
"""A file's name has 255, and those of a run are its name and a little more."""


def make_jobs(
    sweep: Sweep, folder: Path, settings: Sequence[str], config_dir: str | None = None
) -> list[Job]:
    """The sweep's points, changed by the words ``settings``, as resolved runs, longest first.

    UserError: a setting that cannot be, two points that are the same run, or a run's folder that
    holds one of another configuration.
    """
    given = parse_overrides(settings, FREE_TEXT)
    changed = with_overrides(sweep, given)
    in_every_run = {key: v for key, v in sweep.settings.items() if key not in given}
    configs = GridConfigs(config_dir)
    jobs, seen = [], dict[str, tuple[str, list[str]]]()
    for point in points(changed):
        words = overrides(point)
        config = _point_config(words, configs)
        telling = dict(point.items() - in_every_run.items())
        name = run_name(config, overrides(telling))
        config.name, config.runs_dir = name, str(folder)
        _check_length(name)
        identity = _identity(config)
        for known, what in ((identity, "are the same run"), (name, "would share one folder")):
            if known in seen:
                other, others = seen[known]
                raise UserError(
                    f"two points of {sweep.name} {what}: {' '.join(others)} ({other}) and"
                    f" {' '.join(words)} ({name})."
                )
            seen[known] = name, words
        _check_folder(config)
        jobs.append(_job(config, words, folder, config_dir))
    return longest_first(jobs)


def _point_config(words: list[str], configs: GridConfigs) -> TrainConfig:
    try:
        return checked_config(compose_run(words, configs.mapping), words)
    except UserError as error:
        raise UserError(f"{' '.join(words)}: {error}") from error


def _check_length(name: str) -> None:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"the run's name is too long for a file system: {name}. Put some of its settings into"
            " a YAML file: a size of your own (--config-dir), or the sweep file's settings."
        )


def _identity(config: TrainConfig) -> str:
    """Equal for two configs that compute the same."""
    return json.dumps(_what_counts(config), sort_keys=True)


def _what_counts(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's result depends on; of quantization only where there is some."""
    quantized = quantizes(config)
    return {
        key: value
        for key, value in flatten(asdict(config)).items()
        if key != "name" and not is_operational(key) and (quantized or not key.startswith("quant."))
    }


def _check_folder(config: TrainConfig) -> None:
    """UserError where the run's folder is of another configuration: the sweep file has changed.

    The vocabulary is left out, which the run's config has from its tokenizer.
    """
    path = Path(config.runs_dir).expanduser() / str(config.name) / "config.yaml"
    if not path.exists():
        return
    before, now = _what_counts(read_config(path)), _what_counts(config)
    for key in sorted((before.keys() | now.keys()) - {"model.vocab_size"}):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{path.parent} holds a run with {key}={before.get(key)}, and the sweep now asks"
                f" for {key}={now.get(key)}: choose another runs_dir=…, or delete the folder."
            )


def _job(config: TrainConfig, words: list[str], folder: Path, config_dir: str | None) -> Job:
    facts = describe(config)
    name = facts["name"]
    own = [] if config_dir is None else [f"--config-dir={Path(config_dir).absolute()}"]
    return Job(
        name=name,
        words=(*words, f"runs_dir={folder}", f"name={name}", *own),
        folder=folder / name,
        model=facts["model"],
        bits=facts["bits"],
        method=facts["method"],
        steps=facts["steps"],
        tokens=facts["tokens"],
        flops=facts["training_flops"],
        memory_bytes=facts["training_memory_bytes_estimate"],
    )
