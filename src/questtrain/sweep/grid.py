"""From a sweep file to its grid points: what to train, as settings of ``questtrain train``.

A point is the file's ``settings`` with one value of each axis. ``exclude`` takes combinations out
of the grid, ``include`` puts single points behind it. The format: ``sweeps/README.md``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from questtrain.config import TrainConfig
from questtrain.config.loading import setting_names
from questtrain.config.names import PathName
from questtrain.config.schema import GROUPS
from questtrain.errors import UserError, suggestion, unknown

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Scalar: TypeAlias = str | int | float | bool | None

OF_THE_SWEEP = {
    "name": "every run gets a name of its own",
    "runs_dir": "the command line says where the sweep's folder goes",
}
"""Settings of a run that the sweep decides, and why."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file as it is written; `points` expands it."""

    name: str
    title: str
    paper: str | None
    figure: str | None
    settings: Mapping[str, Scalar]
    axes: Mapping[str, tuple[Scalar, ...]]
    exclude: tuple[Mapping[str, Scalar], ...]
    include: tuple[Mapping[str, Scalar], ...]


FILE_KEYS = tuple(field.name for field in fields(Sweep) if field.name != "name")


def sweep_names() -> list[str]:
    """The packaged sweeps, numbers in ascending order: fig3 before fig10."""
    names = [
        file.name.removesuffix(".yaml")
        for file in resources.files("questtrain.sweeps").iterdir()
        if file.name.endswith(".yaml")
    ]
    return sorted(names, key=_natural)


def read_sweep(name_or_path: str) -> Sweep:
    """The packaged sweep of that name, or the file where the name ends in ``.yaml``.

    UserError: no such sweep, or the file breaks a rule of the format; its points are valid then.
    """
    file: Path | Traversable
    if name_or_path.endswith(".yaml"):
        name, label, file = Path(name_or_path).stem, name_or_path, Path(name_or_path)
    elif name_or_path in sweep_names():
        name, label = name_or_path, f"{name_or_path}.yaml"
        file = resources.files("questtrain.sweeps") / label
    else:
        raise unknown("sweep", name_or_path, sweep_names())
    try:
        PathName().check("the sweep's name", name)
        sweep = _sweep(name, _content(file))
        points(sweep)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    return sweep


def points(sweep: Sweep) -> list[dict[str, Scalar]]:
    """Every run's settings: the grid with the first axis slowest, then the included points.

    UserError: an exclude rule that matches nothing, the same point twice, or no point at all.
    """
    grid = [
        {**sweep.settings, **dict(zip(sweep.axes, values, strict=True))}
        for values in itertools.product(*sweep.axes.values())
    ]
    for rule in sweep.exclude:
        for key in rule:
            if key not in sweep.axes and key not in sweep.settings:
                advice = suggestion(key, [*sweep.axes, *sweep.settings])
                raise UserError(f"exclude: {key!r} is neither an axis nor a setting.{advice}")
        if not any(agrees(point, rule) for point in grid):
            raise UserError(f"exclude: no combination has {_words(rule)}.")
    kept = [point for point in grid if not any(agrees(point, rule) for rule in sweep.exclude)]
    found = kept + [{**sweep.settings, **point} for point in sweep.include]
    if not found:
        raise UserError("exclude leaves no point.")
    seen = set()
    for point in found:
        identity = frozenset((key, *_value(value)) for key, value in point.items())
        if identity in seen:
            raise UserError(f"the same point twice: {_words(point)}.")
        seen.add(identity)
    return found


def overrides(point: Mapping[str, Scalar]) -> list[str]:
    """The point as words of the command line: ``["model=30M", "quant.trust_scale=1.05"]``.

    Numbers, ``inf``, booleans and null are read back as they are; text is what one would type.
    """
    return [f"{key}={_text(value)}" for key, value in point.items()]


def _content(file: Path | Traversable) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        advice = suggestion(file.name.removesuffix(".yaml"), sweep_names())
        raise UserError(f"there is no such file.{advice}") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date like 2025-13-01
        raise UserError(f"cannot be read: {' '.join(str(error).split())}") from error


def _sweep(name: str, content: Any) -> Sweep:
    """The parsed YAML with every part's form and every key checked."""
    if not isinstance(content, dict):
        raise UserError(f"a sweep file is a mapping of {', '.join(FILE_KEYS)}.")
    for key in content:
        if key not in FILE_KEYS:
            raise unknown("key", key, FILE_KEYS)
    for key in ("title", "paper", "figure"):
        if not isinstance(content.get(key), str | None):
            raise UserError(f"{key}: {content[key]!r} is not text.")
    return Sweep(
        name,
        title=content.get("title") or name,
        paper=content.get("paper"),
        figure=content.get("figure"),
        settings=_settings("settings", content.get("settings", {})),
        axes=_axes(content.get("axes")),
        exclude=_rules("exclude", content.get("exclude", [])),
        include=_rules("include", content.get("include", [])),
    )


def _axes(axes: Any) -> dict[str, tuple[Scalar, ...]]:
    if not isinstance(axes, dict) or not axes:
        raise UserError("axes: at least one is needed, such as bits: [w4a4, bf16].")
    _check_keys("axes", axes)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"axes: {key} must be a list of values, such as [1, 2].")
        for value in values:
            _check_scalar(f"axes: {key}", value)
    return {key: tuple(values) for key, values in axes.items()}


def _rules(part: str, rules: Any) -> tuple[dict[str, Scalar], ...]:
    if not isinstance(rules, list) or not all(rules):
        raise UserError(f"{part}: write a list of mappings, such as [{{bits: bf16}}].")
    return tuple(_settings(part, rule) for rule in rules)


def _settings(part: str, settings: Any) -> dict[str, Scalar]:
    if not isinstance(settings, dict):
        raise UserError(f"{part}: {settings!r} is not a mapping of settings to values.")
    if part != "exclude":  # its keys are compared with the axes and settings, which are checked
        _check_keys(part, settings)
    for key, value in settings.items():
        _check_scalar(f"{part}: {key}", value)
    return dict(settings)


def _check_keys(part: str, keys: Iterable[Any]) -> None:
    names = [*setting_names(TrainConfig), *GROUPS]
    for key in keys:
        if key not in names:
            raise UserError(f"{part}: unknown setting {key!r}.{suggestion(str(key), names)}")
        if key in OF_THE_SWEEP:
            raise UserError(f"{part}: {key} is not for a sweep file: {OF_THE_SWEEP[key]}.")


def _check_scalar(where: str, value: Any) -> None:
    if not isinstance(value, Scalar):
        raise UserError(f"{where}={value!r} is not a single value: text, a number, true or null.")


def agrees(point: Mapping[str, Scalar], rule: Mapping[str, Scalar]) -> bool:
    """Whether the point has the rule's value of each of the rule's keys."""
    return all(_value(point[key]) == _value(value) for key, value in rule.items())


def _value(value: Scalar) -> tuple[bool, Scalar]:
    """What to compare: 1 and 1.0 are the same setting, but 1 and true are not."""
    return isinstance(value, bool), value


def _words(settings: Mapping[str, Scalar]) -> str:
    return " ".join(overrides(settings))


def _text(value: Scalar) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
