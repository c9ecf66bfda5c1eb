"""The settings of a command on its help page: what each is, what it may be, its default.

All three stand elsewhere, once: the first two where the setting is declared
(`questtrain.config.ranges`), defaults in ``conf/``. They are read without Hydra, which is slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from textwrap import fill
from typing import Any

import yaml

from questtrain.cli.hydra_config import group_choices
from questtrain.config import TrainConfig
from questtrain.config.ranges import Choices, Form, Interval, about, rules_of
from questtrain.config.schema import GROUPS

WIDTH = 100
WIDE = 1e3
"""An interval beyond this holds whatever is sensible: a page need not say it."""
MARKERS = {"???": "", "None": "null", "True": "true", "False": "false"}


def own_settings(kind: Any, config_name: str, width: int = 0) -> str:
    """The settings of a command that has some of its own: the lines of ``conf/CONFIG_NAME.yaml``'s
    keys, as the dataclass ``kind`` declares them; names take ``width`` columns at the least."""
    defaults = _read(f"{config_name}.yaml")
    rows = [(key, _words(kind, key), default_text(value)) for key, value in defaults.items()]
    return _lines(rows, width)


def train_settings() -> str:
    """The groups of `questtrain train`, and its settings outside of them."""
    conf, words = _read("train.yaml"), about(TrainConfig)
    chosen = {group: name for entry in conf["defaults"][1:] for group, name in entry.items()}
    rows = []
    for group in GROUPS:
        what = words["quant" if group == "method" else group]
        rows.append((group, f"{what}: {', '.join(group_choices(group))}", chosen[group]))
    sizes = {size: _read(f"model/{size}.yaml") for size in group_choices("model")}
    for key, value in conf.items():
        if key != "defaults" and not isinstance(value, Mapping):
            rows.append((key, _words(TrainConfig, key), _by_size(key, default_text(value), sizes)))
    return _lines(rows)


def default_text(value: Any) -> str:
    """A default as it is typed: ``null``, ``true``, ``[800M, 7B]``; empty where there is none."""
    if isinstance(value, list):
        return f"[{', '.join(map(default_text, value))}]"
    return MARKERS.get(str(value), str(value))


def _lines(rows: Sequence[tuple[str, str, str]], width: int = 0) -> str:
    """``  name   what it is   [default]`` for each."""
    width = max(width, *(len(name) + 4 for name, _, _ in rows))
    return "\n".join(
        fill(
            f"{f'  {name}':<{width}}{text}{f'   [{default}]' if default else ''}",
            WIDTH,
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, text, default in rows
    )


def _words(kind: Any, key: str) -> str:
    """What the setting is, and in parentheses what it may be."""
    valid = []
    for rule in rules_of(kind)[key]:
        if isinstance(rule, Choices | Form):
            valid.append(str(rule))
        elif isinstance(rule, Interval) and rule.ends[1] <= WIDE:
            valid.append(rule.words())
    return about(kind)[key] + (f" ({'; '.join(valid)})" if valid else "")


def _by_size(key: str, default: str, sizes: Mapping[str, Mapping[str, Any]]) -> str:
    """The default, and what the sizes make of it: all of them, or the one for first runs."""
    if all(key in own for own in sizes.values()):
        return "by size"
    nano = sizes["nano"].get(key)
    return default if nano is None or str(nano) == default else f"{default}; nano {nano}"


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("questtrain.conf") / name).read_text(encoding="utf-8")
    mapping: dict[str, Any] = yaml.safe_load(text)
    return mapping
