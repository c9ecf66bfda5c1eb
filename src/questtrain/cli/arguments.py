"""A command's words: a few options, and settings in Hydra's override grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from questtrain.cli.hydra_config import compose_mapping, given_values, to_yaml
from questtrain.cli.initial_model import compose_run
from questtrain.cli.run_name import run_name
from questtrain.config import TrainConfig, parse_bits, targeted, validate
from questtrain.config.loading import config_from_mapping
from questtrain.config.names import MAX_NAME_BYTES
from questtrain.config.ranges import shown
from questtrain.errors import UserError, suggestion

Config = TypeVar("Config")


@dataclass
class Arguments:
    """Options taken out of the words; the rest are overrides."""

    json: bool = False
    show_config: bool = False
    config_dir: str | None = None
    overrides: list[str] = field(default_factory=list)


def parse_arguments(words: Sequence[str]) -> Arguments:
    """``--json``, ``--cfg job`` and ``--config-dir DIR``; UserError for a bad one."""
    arguments = Arguments()
    rest = iter(words)
    for word in rest:
        option, separator, value = word.partition("=")
        if word == "--json":
            arguments.json = True
        elif option in ("--cfg", "-c"):
            chosen = value if separator else next(rest, None)
            if chosen != "job":
                raise UserError(f"--cfg {chosen or ''} is not known: write --cfg job.")
            arguments.show_config = True
        elif option in ("--config-dir", "-cd"):
            arguments.config_dir = value if separator else next(rest, None)
            if not arguments.config_dir:
                raise UserError("--config-dir needs a folder.")
        else:
            arguments.overrides.append(word)
    return arguments


def train_config(arguments: Arguments) -> TrainConfig:
    """The typed, validated, named config that the words describe."""
    words, config_dir = arguments.overrides, arguments.config_dir
    mapping = compose_run(
        words, lambda words: compose_mapping("train", TrainConfig, words, config_dir)
    )
    return checked_config(mapping, words)


def checked_config(mapping: Mapping[str, Any], words: Sequence[str]) -> TrainConfig:
    """The typed, validated, named config of a composed mapping; what the words set themselves is
    not left to ``quant.target``."""
    config = config_from_mapping(TrainConfig, mapping)
    given = set(given_values(words))
    config.quant = targeted(config.quant, parse_bits(config.bits), given)
    validate(config)
    if config.name is None:
        config.name = run_name(config, words)
        _check_length(config.name)
    return config


def _check_length(name: str) -> None:
    """UserError where a default name is too long; its parts are names."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"the run's name, made of its settings, is too long for a folder: {shown(name)} Give it"
            " one: name=…"
        )


def own_config(arguments: Arguments, config_name: str, kind: type[Config]) -> Config | None:
    """The typed config of a command whose defaults are ``conf/CONFIG_NAME.yaml``; None where the
    configuration alone was asked for, which is then printed."""
    mapping = compose_mapping(config_name, kind, arguments.overrides)
    if arguments.show_config:
        print(to_yaml(mapping), end="")
        return None
    return config_from_mapping(kind, mapping)


def split_paths(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths, and the options and settings: a path is a word without ``=``, or one that exists."""
    paths = [w for w in words if not w.startswith("-") and ("=" not in w or Path(w).exists())]
    return paths, [word for word in words if word not in paths]


def take_option(
    words: Sequence[str], *names: str, what: str = "a value"
) -> tuple[str | None, list[str]]:
    """The value of ``NAME VALUE`` or ``NAME=VALUE``, and the other words; UserError without one."""
    value, others = None, []
    rest = iter(words)
    for word in rest:
        option, separator, given = word.partition("=")
        if option not in names:
            others.append(word)
            continue
        value = given if separator else next(rest, "")
        if not value or value.startswith("-"):
            raise UserError(f"{option} needs {what}.")
    return value, others


def refuse_options(words: Sequence[str], *known: str) -> None:
    """UserError for a word that begins with a dash; ``known`` options as they are written
    (``-o FILE``)."""
    names = [option.split()[0] for option in known]
    for word in words:
        if word.startswith("-"):
            close = suggestion(word.partition("=")[0], names)
            raise UserError(f"unknown option {word!r}: choose from {', '.join(known)}.{close}")
