"""The configurations of a grid's points, which differ in a few values: Hydra composes each choice
of groups once, and single values are put into the result, as Hydra puts them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from questtrain.cli.hydra_config import compose_mapping, hydra_override
from questtrain.config import TrainConfig
from questtrain.config.loading import setting_names
from questtrain.config.schema import GROUPS
from questtrain.errors import UserError

Values: TypeAlias = dict[str, Any]

INTERPOLATION = "${"
"""What makes one setting depend on another. The YAML files of ours have it for the environment
alone; where the user's files or words have it, Hydra composes every point."""


class GridConfigs:
    """Composes ``train`` configurations like `compose_mapping`, with the same result."""

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir
        self._apart = _has_interpolations(config_dir)
        self._bases: dict[tuple[str, ...], Values | None] = {}

    def mapping(self, words: Sequence[str]) -> Values:
        """The configuration that the words describe; UserError as in `compose_mapping`."""
        found = {word: None if self._apart else _single_value(word) for word in words}
        base = self._base(tuple(word for word in words if found[word] is None))
        values = [value for value in found.values() if value is not None]
        changed = None if base is None else _with_values(base, values)
        return self._composed(words) if changed is None else changed

    def _base(self, words: tuple[str, ...]) -> Values | None:
        """What the words compose to that are no single values; None where they alone do not."""
        if words not in self._bases:
            try:
                self._bases[words] = self._composed(words)
            except UserError:
                self._bases[words] = None
        return self._bases[words]

    def _composed(self, words: Sequence[str]) -> Values:
        return compose_mapping("train", TrainConfig, words, self.config_dir)


@cache
def _single_value(word: str) -> tuple[str, Any] | None:
    """Setting and value of a word such as ``lr=1e-3`` or ``quant.grid=int``, read by Hydra's own
    grammar; None for a choice of a group, a list, an interpolation, and what Hydra refuses."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if INTERPOLATION in word or word.partition("=")[0] not in _settings():
        return None
    try:
        override = OverridesParser.create().parse_override(hydra_override(word, _settings()))
        value = override.value()
    except (HydraException, UserError):
        return None
    if override.is_sweep_override() or not isinstance(value, str | int | float | bool | None):
        return None
    return override.key_or_group, value


@cache
def _settings() -> tuple[str, ...]:
    return tuple(name for name in setting_names(TrainConfig) if name not in GROUPS)


def _with_values(base: Values, values: Sequence[tuple[str, Any]]) -> Values | None:
    """A copy of ``base`` with each setting's value; None where only Hydra knows what happens: a
    setting that is given twice, that holds more than one value, or whose place is not there."""
    changed = copy.deepcopy(base)
    if len({key for key, _ in values}) < len(values):
        return None
    for key, value in values:
        group, _, name = key.rpartition(".")
        place = changed.get(group) if group else changed
        if not isinstance(place, dict) or isinstance(place.get(name), Mapping | list):
            return None
        if name not in place and not group:
            return None
        place[name] = value
    return changed


def _has_interpolations(config_dir: str | None) -> bool:
    """Whether the user's own YAML files let one setting depend on another."""
    if config_dir is None:
        return False
    try:
        texts = [file.read_bytes() for file in Path(config_dir).rglob("*.y*ml")]
    except OSError:
        return True
    return any(INTERPOLATION.encode() in text for text in texts)
