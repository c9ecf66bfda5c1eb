"""A grid's configurations are what Hydra composes, and Hydra composes few of them."""

from __future__ import annotations

import random
from importlib import resources

import pytest
import yaml

from questtrain.cli import grid_configs
from questtrain.cli.grid_configs import GridConfigs
from questtrain.cli.hydra_config import compose_mapping
from questtrain.config import TrainConfig
from questtrain.errors import UserError

WORDS = {
    "model": ("30M", "130k"),
    "method": ("quest", "lsq"),
    "data": ("text", "c4"),
    "bits": ("w4a4", "'w2a2'", "bf16", '"it\'s"', "???", ""),
    "lr": ("1e-3", "null", "0.5", "inf", "1", "-2.5e+4", "true"),
    "seed": ("7", "123456789012345678901234567890", "0x10", "1_000"),
    "quant.trust_scale": ("1.05", "null", ".5", "inf"),
    "quant.skip": ("lm_head", "[lm_head,layers.0.*]", "[]"),
    "quant.scale_weight_decay": ("0.1", "0"),
    "optim.weight_decay": ("0.1", "abc def", "1e400"),
    "model.hidden_size": ("64", "nan"),
    "data.files": ("a.txt", "it's,a $x", "[a.txt,b.txt]", "d\\'x", "C:\\dir\\"),
    "data.cache_dir": ("/tmp/x", "~/x", "${runs_dir}/x"),
    "runs_dir": ("somewhere", "a=b"),
    "train.picture": ("true", "False", "NULL"),
    "schedule.warmup_fraction": ("0.1", "choice(1,2)", "1,2", "{a:1}"),
}
"""Settings and values of every kind: choices of groups, text with and without quotes, numbers in
all spellings, lists, interpolations, and what Hydra refuses."""


def outcome(compose, words):
    """What comes out, or the message; with types, for 1 is not 1.0."""
    try:
        return repr(sorted(flat(compose(words)).items()))
    except UserError as error:
        return str(error)


def flat(mapping, prefix=""):
    found = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def hydra(words):
    return compose_mapping("train", TrainConfig, words)


@pytest.mark.parametrize("seed", range(6))
def test_any_words_give_what_hydra_gives(seed):
    """Random points in random orders; one composer serves them all, as it does a grid."""
    draw = random.Random(seed)
    configs = GridConfigs()
    for _ in range(3):
        keys = draw.sample(sorted(WORDS), draw.randint(2, 7))
        words = [f"{key}={draw.choice(WORDS[key])}" for key in keys]
        assert outcome(configs.mapping, words) == outcome(hydra, words), words


@pytest.mark.parametrize(
    "words",
    [
        ["lr=1e-3", "lr=2e-3"],
        ["quant.skip=lm_head", "quant.grid=int", "method=quest"],
        ["nonsense=1"],
        ["quant.nonsense=1"],
        ["+lr=1"],
        ["~lr"],
        ["model=3000M", "lr=1"],
        ["quant=1"],
        ["model.hidden_size=64", "model=30M"],
        ["optim.beta1=0.8", "optim=adamw", "schedule=wsd", "schedule.decay_fraction=0.2"],
    ],
    ids=" ".join,
)
def test_odd_words_give_what_hydra_gives(words):
    assert outcome(GridConfigs().mapping, words) == outcome(hydra, words)


def test_hydra_composes_each_choice_of_groups_once(monkeypatch):
    """Two sizes and two methods in a grid of eighty: four times. No point changes another."""
    composed = []

    def counted(*arguments):
        composed.append(arguments)
        return compose_mapping(*arguments)

    monkeypatch.setattr(grid_configs, "compose_mapping", counted)
    configs, seen = GridConfigs(), []
    for seed in range(20):
        for model in ("30k", "60k"):
            for method in ("quest", "lsq"):
                words = [f"model={model}", f"method={method}", f"seed={seed}", "quant.lr_scale=2"]
                seen.append(configs.mapping(words))
    assert len(composed) == 4
    assert [mapping["seed"] for mapping in seen] == [n for n in range(20) for _ in range(4)]
    assert (
        configs.mapping(["model=30k", "method=quest"])["quant"] == hydra(["method=quest"])["quant"]
    )


def test_interpolations_of_the_user_s_files_are_resolved_for_every_point(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(
        "# @package optim\nname: adamw\nweight_decay: ${lr}\nbeta1: 0.9\nbeta2: 0.95\neps: 1e-8\n"
    )
    configs = GridConfigs(str(tmp_path))
    for lr in ("0.5", "0.25"):
        found = configs.mapping(["model=30k", "optim=mine", f"lr={lr}"])
        assert found["optim"]["weight_decay"] == float(lr)


def test_files_of_ours_depend_on_the_environment_alone():
    """What makes putting values into a composed configuration right."""
    for folder in ("model", "data", "method", "optim", "schedule", "logger", "."):
        for file in (resources.files("questtrain.conf") / folder).iterdir():
            if file.name.endswith(".yaml"):
                values = flat(yaml.safe_load(file.read_text()) or {})
                texts = [str(value) for value in values.values() if "${" in str(value)]
                assert all(text.startswith("${oc.env:") for text in texts)
                assert all(text.count("${") == 1 for text in texts)
