"""A config in a JSON file, which has no infinity: infinite numbers are the texts inf and -inf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from questtrain.config.loading import config_from_mapping

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_INFINITE = {math.inf: "inf", -math.inf: "-inf"}


def json_form(config: DataclassInstance) -> dict[str, Any]:
    """A config's settings, groups as mappings."""
    form: dict[str, Any] = _finite(asdict(config))
    return form


def config_from_json(kind: type[T], form: Mapping[str, Any]) -> T:
    """What `json_form` was given; UserError as `config_from_mapping`."""
    return config_from_mapping(kind, _with_infinities(form))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return _INFINITE.get(value, value) if isinstance(value, float) else value


def _with_infinities(value: Any) -> Any:
    """A name that reads "inf" becomes a number here and text again where the config asks for
    text."""
    if isinstance(value, Mapping):
        return {key: _with_infinities(each) for key, each in value.items()}
    infinite = value in _INFINITE.values() if isinstance(value, str) else False
    return float(value) if infinite else value
