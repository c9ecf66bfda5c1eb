"""The only place that talks to Hydra: overrides in, plain mapping out, errors made readable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from questtrain.config.loading import setting_names
from questtrain.errors import UserError, suggestion, unknown

GROUPS = ("model", "data", "method", "optim", "schedule", "logger")
FREE_TEXT = (
    "prompt",
    "run",
    "name",
    "runs_dir",
    "data.files",
    "data.validation_files",
    "data.tokenizer",
    "data.bos_token",
    "data.text_field",
    "data.cache_dir",
)
"""Keys whose values are taken literally, whatever characters they hold (lists stay lists)."""


def group_choices(group: str, config_dir: str | None = None) -> list[str]:
    """The YAML files of a group, sizes in ascending order."""
    folders = [resources.files("questtrain.conf") / group]
    if config_dir is not None:
        folders.append(Path(config_dir) / group)
    names = {
        file.name.removesuffix(".yaml")
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
    return sorted(names, key=lambda name: (_size(name), name))


def compose_mapping(
    config_name: str, kind: type[Any], overrides: Sequence[str], config_dir: str | None = None
) -> dict[str, Any]:
    """Compose ``conf/CONFIG_NAME.yaml`` with overrides; values that are not set stay '???'.

    ``kind`` is the config's dataclass: its fields are the settings that can be given.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    names = setting_names(kind)
    arguments = [_hydra_override(override, names) for override in overrides]
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir} is not a folder.")
        arguments.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    with _readable_errors(config_dir):
        composed = compose(config_name=config_name, overrides=arguments)
        mapping = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def to_yaml(mapping: dict[str, Any]) -> str:
    """The YAML text of a composed mapping."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(mapping))


def _hydra_override(override: str, names: Sequence[str]) -> str:
    """Check one word's form and key, and write it as Hydra wants it.

    A setting that a group's YAML file leaves out is still a setting: ``++`` adds it there.
    """
    if override.startswith("-"):
        raise UserError(
            f"unknown option {override!r}: the options are --help, --cfg job, --config-dir DIR and"
            " --json; settings are written key=value."
        )
    key, separator, value = override.partition("=")
    if key in GROUPS and value.startswith("["):
        raise UserError(f"{override!r}: one choice of {key} at a time.")
    if override[:1] and override[0] in "+~":
        return _literal(override)
    if not separator:
        raise UserError(f"{override!r} is not a setting: write key=value, such as bits=w4a4.")
    if key not in names and key not in GROUPS:
        advice = suggestion(key, [*names, *GROUPS])
        raise UserError(f"unknown setting {key!r}.{advice} --help lists the settings.")
    return _literal(f"++{override}" if "." in key else override)


def _literal(override: str) -> str:
    key, separator, value = override.partition("=")
    if key.lstrip("+") not in FREE_TEXT or not separator or value[:1] in ("[", "'", '"'):
        return override
    if value in ("", "null"):
        return override
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    escaped = escaped.replace("${", "\\${")
    return f"{key}='{escaped}'"


def _size(name: str) -> float:
    """Model sizes sort by size, in millions: 30k before 30M before 100M. Names that say none stand
    where ``nano`` belongs, at one, and by alphabet."""
    units = {"k": 1e-3, "M": 1.0}
    return float(name[:-1]) * units[name[-1]] if re.fullmatch(r"\d+[kM]", name) else 1.0


@contextmanager
def _readable_errors(config_dir: str | None) -> Iterator[None]:
    from hydra import initialize_config_module
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_module("questtrain.conf", version_base="1.3"):
        try:
            yield
        except MissingConfigException as error:
            group, _, value = str(error.missing_cfg_file or "").partition("/")
            if group not in GROUPS:
                raise UserError(str(error)) from error
            raise unknown(group, value, group_choices(group, config_dir)) from error
        except OverrideParseException as error:
            raise UserError(
                f"cannot read the setting {str(error.override).lstrip('+')!r}:"
                f" {error.message.splitlines()[0]}."
                " Values with special characters need quotes of their own: key=\"'a(b)'\"."
            ) from error
        except (HydraException, OmegaConfBaseException) as error:
            text = str(error) or str(error.__cause__)
            raise UserError(text.splitlines()[0]) from error
