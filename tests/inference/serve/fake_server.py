"""``python -m tests.inference.serve.fake_server SETTINGS``: a server of the fake engine;
SETTINGS is JSON, those of `ServeConfig` beside those of `FakeModel`."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from importlib import resources

import yaml

import questtrain.cli.main as cli
from questtrain.config.loading import config_from_mapping
from questtrain.config.serve import ServeConfig
from questtrain.inference.serve.server import serve
from tests.inference.serve.fake_engine import FakeModel


def main(words: list[str]) -> int:
    settings = json.loads(words[0])
    of_model = {each.name for each in fields(FakeModel)} & settings.keys()
    model = FakeModel(**{name: settings[name] for name in of_model})
    defaults = yaml.safe_load((resources.files("questtrain.conf") / "serve.yaml").read_text())
    own = {key: value for key, value in settings.items() if key in defaults}
    serve(config_from_mapping(ServeConfig, {**defaults, "run": "fake", "port": 0, **own}), model)
    return 0


if __name__ == "__main__":
    cli._dispatch = lambda command, words: main(words)  # its exit codes and signals, our engine
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
