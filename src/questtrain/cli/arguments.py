"""A command's words: a few options, and settings in Hydra's override grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from questtrain.cli.hydra_config import compose_mapping
from questtrain.cli.run_name import run_name
from questtrain.config import TrainConfig, validate
from questtrain.config.loading import config_from_mapping
from questtrain.errors import UserError


@dataclass
class Arguments:
    """Options taken out of the words; the rest are overrides."""

    help: bool = False
    json: bool = False
    show_config: bool = False
    config_dir: str | None = None
    overrides: list[str] = field(default_factory=list)


def parse_arguments(words: Sequence[str]) -> Arguments:
    """``--help``, ``--json``, ``--cfg job`` and ``--config-dir DIR``; UserError for a bad one."""
    arguments = Arguments()
    rest = iter(words)
    for word in rest:
        option, separator, value = word.partition("=")
        if word in ("-h", "--help"):
            arguments.help = True
        elif word == "--json":
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
    mapping = compose_mapping("train", TrainConfig, arguments.overrides, arguments.config_dir)
    config = config_from_mapping(TrainConfig, mapping)
    validate(config)
    if config.name is None:
        config.name = run_name(config, arguments.overrides)
    return config
