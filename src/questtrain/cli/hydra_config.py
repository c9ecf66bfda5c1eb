"""The only place that talks to Hydra: overrides in, plain mapping out, errors made readable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from questtrain.cli.environment import environment_closed
from questtrain.cli.own_files import check_own_file, own_file, read_own_file
from questtrain.config.loading import setting_names
from questtrain.config.ranges import shown
from questtrain.config.schema import GROUPS
from questtrain.config.yaml_fault import yaml_fault
from questtrain.errors import UserError, suggestion, unknown

ADDED_GROUPS = ("launcher",)
"""Groups that a command adds to its own settings, with Hydra's ``+``."""

EXAMPLES = {"bits": "w4a4", "run": "runs/first"}
"""Of settings, for messages: the first that a command has is shown."""

HUGE_NUMBER = re.compile(r"[+-]?[\d_]{1000,}")
"""More digits than Python reads."""

OF_RESOLVER = "UserError raised while resolving interpolation: "
"""What OmegaConf puts before our own message (`environment_closed`)."""

FREE_TEXT = (
    "prompt",
    "run",
    "export",
    "tasks",
    "include_path",
    "datasets",
    "output",
    "name",
    "runs_dir",
    "init_from",
    "data.files",
    "data.validation_files",
    "data.tokenizer",
    "data.bos_token",
    "data.text_field",
    "data.cache_dir",
    "files",
    "bundle",
    "text_field",
    "train.eval_tasks",
    "train.eval_tasks_datasets",
    "train.eval_tasks_include_path",
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

    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder.")
    names = setting_names(kind)
    arguments = [hydra_override(override, names, config_dir) for override in overrides]
    if config_dir is not None:
        _check_own_files(overrides, kind, config_dir)
        arguments.append(f"hydra.searchpath=[{_quoted(f'file://{Path(config_dir).resolve()}')}]")
    with _readable_errors(config_dir), environment_closed():
        composed = compose(config_name=config_name, overrides=arguments)
        mapping = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def to_yaml(mapping: dict[str, Any]) -> str:
    """The YAML text of a composed mapping."""
    return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)


def hydra_override(override: str, names: Sequence[str], config_dir: str | None = None) -> str:
    """Check one word's form, key and choice, and write it as Hydra wants it.

    A setting that a group's YAML file leaves out is still a setting: ``++`` adds it there.
    """
    if override.startswith("-"):
        raise UserError(
            f"unknown option {override!r}: the options are --help, --cfg job, --config-dir DIR and"
            " --json; settings are written key=value."
        )
    sign, key, separator, value = _taken_apart(override)
    if not (separator or sign == "~"):
        raise _no_setting(override, names)
    if sign == "+" and key in ADDED_GROUPS:
        return override
    groups = GROUPS if "model.name" in names else ()  # other commands have none
    if key not in names and key not in groups:
        advice = suggestion(key, [*names, *groups])
        raise UserError(f"unknown setting {key!r}.{advice} --help lists the settings.")
    if HUGE_NUMBER.fullmatch(value):
        raise UserError(f"{key}={shown(value)} is too large a number.")
    if key == "quant.method":
        raise UserError(
            "quant.method is what a method's file calls it, and no setting: method=… chooses one."
        )
    if key in groups and separator:
        _check_choice(key, value, config_dir)
    return _literal(f"++{override}" if not sign and "." in key else override)


def _no_setting(word: str, names: Sequence[str]) -> UserError:
    """What to raise for a word without ``=``: the folder of a run belongs behind ``run=``, where
    there is that setting."""
    if "run" in names and word and (Path(word).expanduser() / "config.yaml").is_file():
        return UserError(f"{word!r} is not a setting but a run's folder: write run={word}.")
    example = next((f"{key}={value}" for key, value in EXAMPLES.items() if key in names), None)
    such_as = f", such as {example}" if example else ""
    return UserError(f"{word!r} is not a setting: write key=value{such_as}.")


def _taken_apart(override: str) -> tuple[str, str, str, str]:
    """Hydra's sign (``+``, ``++``, ``~`` or none), the key, ``=`` or nothing, and the value."""
    sign = re.match(r"\+{0,2}~?", override)
    assert sign is not None
    return (sign[0], *override[sign.end() :].partition("="))


def _check_choice(group: str, value: str, config_dir: str | None) -> None:
    """UserError unless the value names one file of the group, ours or the user's."""
    if value.startswith("["):
        raise UserError(f"'{group}={value}': one choice of {group} at a time.")
    name, choices = value.strip("'\""), group_choices(group, config_dir)
    if name not in choices and own_file(config_dir, group, name) is None:
        raise unknown(group, value, choices)


def _check_own_files(overrides: Sequence[str], kind: type[Any], config_dir: str) -> None:
    """UserError for a chosen file of the user's own in which something is wrong."""
    for override in overrides:
        _, group, _, value = _taken_apart(override)
        choice = value.strip("'\"")
        path = own_file(config_dir, group, choice)
        if path is not None and choice in group_choices(group):
            raise UserError(
                f"{path} has the name of one of ours, which is read in its place: give yours"
                " another name."
            )
        if path is not None and group in GROUPS:
            check_own_file(path, group, kind)
        elif path is not None and group in ADDED_GROUPS:
            read_own_file(path)


def given_values(words: Sequence[str]) -> dict[str, str]:
    """What the words set, and to what."""
    return dict(word.lstrip("+~").partition("=")[::2] for word in words)


def _literal(override: str) -> str:
    key, separator, value = override.partition("=")
    if key.lstrip("+~") not in FREE_TEXT or not separator or value[:1] in ("[", "'", '"'):
        return override
    if value in ("", "null"):
        return override
    return f"{key}={_quoted(value)}"


def _quoted(text: str) -> str:
    """Text that Hydra's grammar takes as it is."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    escaped = escaped.replace("${", "\\${")
    return f"'{escaped}'"


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
            text = str(error).removeprefix(OF_RESOLVER) or str(error.__cause__)
            key = getattr(error, "full_key", None)
            raise UserError((f"{key}: " if key else "") + text.splitlines()[0]) from error
        except yaml.YAMLError as error:
            raise UserError(yaml_fault(error)) from error
        except (ValueError, TypeError, RecursionError) as error:  # what Hydra does not foresee
            text = str(error) or type(error).__name__
            raise UserError(f"the settings cannot be read: {text.splitlines()[0]}") from error
