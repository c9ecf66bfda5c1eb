"""``questtrain verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from questtrain.cli.arguments import own_config, parse_arguments, split_paths
from questtrain.cli.export import show
from questtrain.cli.help_page import own_settings
from questtrain.config.schema import DEVICE
from questtrain.errors import UserError

HELP = """usage: questtrain verify EXPORT run=DIR [key=value …]

Compares an export with its run again, perhaps by another version of its program. The files must be
those of its certificate, which stays as it is.

{settings}

  --json                 print the new certificate as JSON

  questtrain verify exports/first run=runs/first
"""


@dataclass
class VerifyConfig:
    """What an export is compared with, and by what."""

    run: Annotated[str, "the run's folder"]
    runtime: Annotated[str | None, "the program that verifies; null: that of the certificate"]
    device: Annotated[str, DEVICE, "what both run on"]


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain verify --help`` prints."""
    return HELP.replace("{settings}", own_settings(VerifyConfig, "verify"))


def main(words: Sequence[str]) -> int:
    """Print the new certificate."""
    folders, settings = split_paths(words)
    arguments = parse_arguments(settings)
    config = own_config(arguments, "verify", VerifyConfig)
    if config is None:
        return 0
    if len(folders) != 1:
        raise UserError(f"verify takes one folder of an export, not {len(folders)}.")

    from questtrain.device import choose_device
    from questtrain.inference.export.write import verify_export

    export, run = Path(folders[0]).expanduser(), Path(config.run)
    device = str(choose_device(config.device))
    show(str(export), verify_export(export, run, config.runtime, device), arguments.json)
    return 0
