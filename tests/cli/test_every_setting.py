"""Every setting, whatever it is given: a run, or one message that names it, and no folder left.

The settings are read off the dataclasses: a new one is covered as it is made.
"""

from __future__ import annotations

import copy
import json
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from questtrain.bench.settings import (
    DecodeConfig,
    LayerConfig,
    PrefillConfig,
    ServeLoadConfig,
    TrainStepConfig,
)
from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.diagnose import DiagnoseConfig
from questtrain.cli.eval import EvalConfig
from questtrain.cli.generate import GenerateConfig
from questtrain.cli.hydra_config import compose_mapping
from questtrain.cli.main import main
from questtrain.cli.plan import PlanConfig
from questtrain.cli.run_name import run_name
from questtrain.cli.sweep import SweepConfig
from questtrain.config import RopeScaling, TrainConfig, validate
from questtrain.config.loading import config_from_mapping, group_kind, setting_names
from questtrain.config.ranges import Interval, about, rules_of
from questtrain.config.schema import GROUPS
from questtrain.config.serve import ServeConfig
from questtrain.data.sources import KINDS
from questtrain.errors import UserError
from questtrain.scaling.fit import FitOptions
from questtrain.sweep.launchers import KINDS as KINDS_OF_LAUNCHERS
from questtrain.sweep.launchers import launcher_class
from questtrain.train.machine import check_memory, set_threads
from questtrain.train.parallel import World
from tests.cli.setting_values import NUMBERS, STRANGE, values_of

TINY = ["model=30k", "data=stdlib", "device=cpu"]
SETTINGS = setting_names(TrainConfig)
COMMANDS = {
    "bench_layer": LayerConfig,
    "bench_prefill": PrefillConfig,
    "bench_decode": DecodeConfig,
    "bench_serve": ServeLoadConfig,
    "bench_train": TrainStepConfig,
    "diagnose": DiagnoseConfig,
    "eval": EvalConfig,
    "fit": FitOptions,
    "generate": GenerateConfig,
    "plan": PlanConfig,
    "serve": ServeConfig,
    "sweep": SweepConfig,
}
"""The other commands' own settings: file of ``conf/`` → what it is read as."""


def with_value(mapping: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(mapping)
    *groups, name = key.split(".")
    place = changed
    for group in groups:
        place = place.setdefault(group, {})
    place[name] = value
    return changed


@contextmanager
def one_message(key: str) -> Iterator[None]:
    """What is refused inside is refused in one message that names the setting."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if key not in text or len(text.splitlines()) > 1 or len(text) > 1000:
            raise AssertionError(f"no message about {key}: {text}") from error


@pytest.fixture(scope="module")
def mappings() -> dict[str, dict[str, Any]]:
    """Composed settings of a quantized run, an unquantized one, one of learned scales and WSD."""
    return {
        "w4a4": compose_mapping("train", TrainConfig, [*TINY, "bits=w4a4"]),
        "bf16": compose_mapping("train", TrainConfig, [*TINY, "bits=bf16"]),
        "lsq": compose_mapping("train", TrainConfig, [*TINY, "method=lsq", "schedule=wsd"]),
    }


@pytest.mark.parametrize("key", SETTINGS)
@examples(max_examples=25)
@given(data=st.data())
def test_a_value_makes_a_run_or_one_message(
    mappings: dict[str, dict[str, Any]], key: str, data: st.DataObject
) -> None:
    """All that `questtrain train` does before it writes anything; and what it then writes can be
    written and read again."""
    value = data.draw(values_of(TrainConfig, key))
    mapping = with_value(mappings[data.draw(st.sampled_from(sorted(mappings)))], key, value)
    threads = torch.get_num_threads()
    with one_message(key):
        config = config_from_mapping(TrainConfig, mapping)
        validate(config)
        config.name = config.name or run_name(config, [])
        set_threads(config.train.threads)
        torch.set_num_threads(threads)
        if config.device == "cpu":
            check_memory(config, torch.device("cpu"), World())
        written = yaml.safe_dump(asdict(config))
        assert config_from_mapping(TrainConfig, yaml.safe_load(written)) == config
        folder = Path("/runs", config.name).resolve()
        assert Path("/runs") in folder.parents


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, kind in COMMANDS.items() for key in setting_names(kind)]
)
@examples(max_examples=10)
@given(data=st.data())
def test_other_commands_judge_their_settings_too(name: str, key: str, data: st.DataObject) -> None:
    kind = COMMANDS[name]
    mapping = {**yaml_of(name), key: data.draw(values_of(kind, key))}
    with one_message(key):
        config_from_mapping(kind, mapping)


def yaml_of(name: str) -> dict[str, Any]:
    """The command's defaults, and something for what has none."""
    file = resources.files("questtrain.conf") / f"{name}.yaml"
    mapping = yaml.safe_load(file.read_text(encoding="utf-8"))
    required = {"run": "runs/x", "prompt": "a", "what": "mask", "tasks": "a"}
    return {key: required.get(key, value) for key, value in mapping.items()}


WORDS = (
    *(value for value in STRANGE if isinstance(value, str)),
    *map(str, NUMBERS), "9" * 5000, "true", "[1,[a]]", "{a:1}", "'", '"', "\\", "(", "=", "a=b",
    "a b", "${x}", "x,y", "$", "#", "a:b", "@", "choice(1,2)", "int('3')",
)  # fmt: skip
KEYS = [*SETTINGS, *GROUPS]
SOME_WORDS = [(key, WORDS[7 * i % len(WORDS)]) for i, key in enumerate(KEYS)]
ALL_WORDS = [(sign + key, word) for sign in ("", "++") for key in KEYS for word in WORDS]


def check_word(key: str, word: str) -> None:
    with one_message(key.lstrip("+")):
        train_config(parse_arguments([*TINY, f"{key}={word}"]))
    assert not list(Path.cwd().iterdir())


def test_a_word_makes_a_run_or_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the command line's words and Hydra's grammar; nothing is written."""
    monkeypatch.chdir(tmp_path)
    for key, word in SOME_WORDS:
        check_word(key, word)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_word_makes_a_run_or_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, word in ALL_WORDS:
        check_word(key, word)


def test_every_number_says_what_it_may_be() -> None:
    """A field of numbers without an `Interval` would take nan, and 10**99."""
    for kind in (TrainConfig, *COMMANDS.values(), *map(launcher_class, KINDS_OF_LAUNCHERS)):
        for key in setting_names(kind):
            *groups, name = key.split(".")
            owner: Any = kind
            for group in groups:
                owner = group_kind(typing.get_type_hints(owner)[group])
            hint = str(typing.get_type_hints(owner)[name])
            if group_kind(typing.get_type_hints(owner)[name]):
                continue  # whose own settings are judged
            if "int" in hint or "float" in hint:
                rules = rules_of(owner)[name]
                assert any(isinstance(rule, Interval) for rule in rules), f"{kind.__name__}.{key}"


def test_every_setting_says_what_it_is() -> None:
    """In one line, without what a Markdown table cannot hold: pages of help and docs/settings.md
    show it."""
    groups = typing.get_type_hints(TrainConfig).values()
    for kind in (TrainConfig, RopeScaling, *groups, *COMMANDS.values()):
        for name, text in about(kind).items() if is_dataclass(kind) else ():
            assert text, f"{kind.__name__}.{name}"
            assert not {"|", "\n"} & set(text), f"{kind.__name__}.{name}"


def test_declared_choices_are_those_that_there_are() -> None:
    """`questtrain.config` cannot ask the wings that read a setting."""
    (source,) = rules_of(typing.get_type_hints(TrainConfig)["data"])["source"]
    assert set(source.names) == set(KINDS)


LOWEST = {
    "seed": 0, "sequence_length": 2, "batch_size": 1, "micro_batch_size": 1, "log_every": 1,
    "eval_every": 1, "checkpoint_every": 1, "model.norm_eps": 0, "model.rope_theta": 1,
    "model.init_std": 1e-6, "optim.beta1": 0, "optim.beta2": 1e-9, "optim.eps": 1e-30,
    "optim.weight_decay": 0, "optim.gradient_clip": 0, "schedule.warmup_fraction": 0,
    "schedule.start_ratio": 0, "schedule.final_ratio": 0, "train.validation_tokens": 1,
    "train.keep_checkpoints": 1, "train.threads": 1, "quant.trust_error": 1e-300, "lr": 1e-300,
    "model.num_kv_heads": 1, "model.head_dim": 8, "model.rope_scaling.factor": 1,
    "model.rope_scaling.original_max_position_embeddings": 1,
    "name": "low",
}  # fmt: skip
HIGHEST = {
    "seed": 2**64 - 1, "log_every": 2**53, "eval_every": 2**53, "checkpoint_every": 2**53,
    "micro_batch_size": 2**20, "model.norm_eps": 1, "model.rope_theta": 1e12, "optim.eps": 1,
    "optim.weight_decay": 10, "optim.gradient_clip": "inf", "schedule.warmup_fraction": 1,
    "schedule.start_ratio": 1, "schedule.final_ratio": 1, "train.keep_checkpoints": 2**31 - 1,
    "train.diagnose_every": 2**53, "quant.trust_scale": "inf", "tokens_per_param": 1e9,
    "model.rope_scaling.factor": 1e6, "model.rope_scaling.high_freq_factor": 1e6,
    "name": "a/b/c",
}  # fmt: skip
NULLS = {"optim.gradient_clip": "null", "quant.trust_error": "inf", "name": "ü [old] ${x}"}


@pytest.mark.parametrize("settings", [LOWEST, HIGHEST, NULLS], ids=["lowest", "highest", "null"])
def test_a_run_at_the_edge_is_recorded(
    tmp_path: Path, corpus: list[str], settings: dict[str, Any]
) -> None:
    """Values at the ends of the ranges train and are recorded, in JSON that anything reads."""
    words = ["batch_size=2", "sequence_length=32", "train.validation_tokens=64", "max_steps=1"]
    words = [word for word in words if word.partition("=")[0] not in settings]
    words += [f"{key}={value}" for key, value in settings.items()]
    base = ["model=30k", *corpus, "device=cpu", f"runs_dir={tmp_path / 'runs'}"]
    assert main(["train", *base, *words]) == 0
    (path,) = (tmp_path / "runs").rglob("run.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["status"] == "completed"


@pytest.mark.parametrize(
    "word",
    [
        "name=", "name=.", "name=..", "name=/x", "name=a/../../x", "name=-x", "name=a//b",
        "data.name=../x", "data.name=a/b", "model.name=", "model.name=../x", "runs_dir=",
        "train.threads=4096", "model.hidden_size=1048576", "sequence_length=1048576",
        "data.vocab_size=70000", "model.nominal_params=1e15", "tokens_per_param=1e99", "optim=null",
        "model=null", "optim={}", "optim.gradient_clip=-1", "quant.method=lsq",
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    corpus: list[str],
    word: str,
) -> None:
    """The real command, not only its settings: one message, exit code 2, no folder."""
    monkeypatch.chdir(tmp_path)
    words = ["model=30k", *corpus, "device=cpu", "batch_size=256", word]
    if word.startswith("data.vocab_size"):
        words = [*TINY, f"data.cache_dir={tmp_path / 'cache'}", word]
    assert main(["train", *words, "micro_batch_size=null"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert word.partition("=")[0] in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())
