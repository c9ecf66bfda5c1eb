"""``init_from`` on the command line: model group and tokenizer come from the folder, and the
recipe (learning rate, batch) from the nearest size, unless the words say otherwise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from questtrain.cli.hydra_config import given_values, group_choices
from questtrain.config import ModelConfig, TrainConfig, non_embedding_params
from questtrain.config.loading import NOT_SET, check_setting, config_from_mapping, read_config
from questtrain.config.model_shape import NO_SHAPE, shape_differences
from questtrain.errors import UserError

Compose = Callable[[Sequence[str]], dict[str, Any]]
"""From words to the composed mapping of `questtrain train`."""


@dataclass(frozen=True)
class _Start:
    """What a folder of weights says of a run that starts from it."""

    model: ModelConfig
    tokenizer: Path | None
    bos_token: str | None


def compose_run(words: Sequence[str], compose: Compose) -> dict[str, Any]:
    """The mapping that the words compose to. With ``init_from``, the model is that folder's, and
    learning rate and batch are those of its size (of the nearest, where it has none of ours);
    UserError for words that ask for another model."""
    mapping = compose(words)
    init_from = mapping.get("init_from")
    if init_from is None:
        return mapping
    check_setting(TrainConfig, "init_from", init_from)
    given = set(given_values(words))
    start = _start(str(init_from), mapping)
    if "model" not in given:
        mapping = compose([*words, f"model={_size_of(start.model)}"])
    mapping["model"] = asdict(_model(mapping["model"], start.model, given, str(init_from)))
    if not _names_a_tokenizer(mapping["data"], words):
        mapping["data"]["tokenizer"] = _tokenizer(start, str(init_from))
        if "data.bos_token" not in given and start.bos_token is not None:
            mapping["data"]["bos_token"] = start.bos_token
    return mapping


def _start(init_from: str, mapping: dict[str, Any]) -> _Start:
    """From the folder; where that is gone, from the run which began with it."""
    from questtrain.train.weight_source import tokenizer_of, weight_source

    if not os.path.isdir(os.path.expanduser(init_from)):
        for run in _runs_begun(mapping):
            config = _config_of(run)
            if config is not None and config.init_from == init_from:
                return _Start(config.model, tokenizer_of(run), config.data.bos_token)
    source = weight_source(init_from)
    return _Start(source.model, tokenizer_of(source.folder), source.bos_token)


def _runs_begun(mapping: dict[str, Any]) -> list[Path]:
    """The folder of the run's name; where that is yet to be made of the settings, all there are."""
    runs = Path(str(mapping["runs_dir"])).expanduser()
    if mapping["name"] is not None:
        return [runs / str(mapping["name"])]
    return sorted(path.parent.parent for path in runs.glob("*/checkpoints/step_*"))


def _config_of(run: Path) -> TrainConfig | None:
    try:
        return read_config(run / "config.yaml")
    except UserError:
        return None


def _model(
    composed: dict[str, Any], there: ModelConfig, given: set[str], init_from: str
) -> ModelConfig:
    """The folder's, under the name and with the nominal size that were asked for."""
    own = {} if "model" in given else asdict(there)
    keys = composed if "model" in given else _settings_of_model(given)
    for key in keys:
        value, group = composed.get(key), own.get(key)
        if isinstance(value, dict) and isinstance(group, dict):
            value = {**group, **value}
        own[key] = value
    asked = config_from_mapping(ModelConfig, own)
    for key, mine, other in shape_differences(asked, there):
        raise UserError(
            f"model.{key}={mine} is asked for, and init_from={init_from} has {other}: leave model"
            " out, and it is the folder's."
        )
    free = {key: value for key, value in asdict(asked).items() if key in NO_SHAPE}
    return config_from_mapping(ModelConfig, asdict(there) | free)


def _settings_of_model(given: set[str]) -> set[str]:
    return {key.split(".")[1] for key in given if key.startswith("model.")}


def _names_a_tokenizer(data: dict[str, Any], words: Sequence[str]) -> bool:
    """Whether the user's words or their own data file say which tokenizer the data has."""
    given = given_values(words)
    if "data.tokenizer" in given:
        return True
    is_own = given.get("data", "c4").strip("'\"") not in group_choices("data")
    return is_own and data.get("tokenizer") not in (None, NOT_SET)


def _tokenizer(start: _Start, init_from: str) -> str:
    if start.tokenizer is None:
        raise UserError(
            f"init_from={init_from} holds no tokenizer.json or tokenizer.model: give"
            " data.tokenizer=…, the one that its weights were trained with."
        )
    return str(start.tokenizer)


def _size_of(model: ModelConfig) -> str:
    """The size of ours that the model is, or whose number of parameters is nearest."""
    sizes = group_choices("model")
    if model.name in sizes:
        return model.name
    wanted = math.log(non_embedding_params(model))
    return min(sizes, key=lambda size: abs(math.log(_params(size)) - wanted))


def _params(size: str) -> int:
    file = resources.files("questtrain.conf") / "model" / f"{size}.yaml"
    group = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    return non_embedding_params(config_from_mapping(ModelConfig, group))
