"""Methods by name: ``conf/method/NAME.yaml`` is the one place that defines them."""

from __future__ import annotations

import functools
from importlib import resources

import yaml

from questtrain.config import QuantConfig
from questtrain.errors import unknown


@functools.cache
def method_names() -> tuple[str, ...]:
    folder = resources.files("questtrain.conf") / "method"
    return tuple(sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml")))


def method_config(method: str | QuantConfig) -> QuantConfig:
    """The config of a named method; a config passes through. UserError for an unknown name."""
    if isinstance(method, QuantConfig):
        return method
    if method not in method_names():
        raise unknown("method", method, method_names())
    text = (resources.files("questtrain.conf") / "method" / f"{method}.yaml").read_text()
    return QuantConfig(**yaml.safe_load(text))
