"""``questtrain bench layer``, ``prefill``, ``decode``, ``serve`` and ``train``."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questtrain.bench.settings import (
    BenchConfig,
    DecodeConfig,
    LayerConfig,
    PrefillConfig,
    ServeLoadConfig,
    TrainStepConfig,
)
from questtrain.cli.arguments import own_config, parse_arguments
from questtrain.cli.bench_models import (
    inference_models,
    layer_models,
    served_cases,
    training_cases,
)
from questtrain.cli.help_page import own_settings
from questtrain.cli.hydra_config import given_values
from questtrain.cli.output import print_json
from questtrain.config.ranges import Choices, Text, rules_of
from questtrain.errors import UserError, unknown
from questtrain.sweep.console import console

if TYPE_CHECKING:
    import torch

    from questtrain.bench.results import Results

OF_RANDOM_MODELS = ("models", "bits", "vocab_size", "layers")
"""Settings of `bench serve` that say what a run says itself."""

log = logging.getLogger(__name__)

HELP = """usage: questtrain bench layer|prefill|decode|serve|train [key=value …] [--json]

Speed against BF16 on this machine, with the device's own limits measured in the same run.

  layer     linear layers, quantization included, and the quantizers alone (figure 6)
  prefill   a whole model over many tokens (figure 7)
  decode    a whole model, a token a step
  serve     a server that clients ask at the same time
  train     a whole optimizer step

Each writes a JSON file as it goes, and a picture beside it; --json prints the JSON.
`questtrain bench layer --help` lists the settings of layer; more: docs/benchmarks.md.
"""


@dataclass(frozen=True)
class Action:
    """One benchmark. ``measure`` is a module of `questtrain.bench` and its function ``(results,
    models, config, device)``, imported when it runs; ``models`` makes its models from the config
    (UserError for settings that cannot be measured).
    """

    config: type[BenchConfig]
    measure: tuple[str, str]
    models: Callable[[Any], Any]
    examples: tuple[str, ...]


ACTIONS = {
    "layer": Action(
        LayerConfig,
        ("layer.parts", "bench_layer"),
        layer_models,
        (
            "models=[800M,7B] output=benchmarks/results/layer.json",
            "models=7B parts=block tokens=[1,16,64,256] bits=[w4a4,w2a2,w1a1]",
            "models=nano tokens=[1,16] device=cpu",
        ),
    ),
    "prefill": Action(
        PrefillConfig,
        ("model.prefill", "bench_prefill"),
        inference_models,
        ("models=800M batch_sizes=[1,8,64]",),
    ),
    "decode": Action(
        DecodeConfig,
        ("model.decode", "bench_decode"),
        inference_models,
        ("models=7B batch_sizes=1 bits=[w4a4,w2a4]",),
    ),
    "serve": Action(
        ServeLoadConfig,
        ("serve.bench", "bench_serve"),
        served_cases,
        (
            "models=[7B,800M] clients=[1,16,64]",
            "run=runs/first clients=8 rate=4",
            "models=nano clients=[1,4] seconds=2 output_tokens=16",
        ),
    ),
    "train": Action(
        TrainStepConfig,
        ("train.train_step", "bench_train"),
        training_cases,
        (
            "models=800M 'cases=[w4a4,\"w4a4 train.save=packed\"]'",
            "models=nano steps=4 batch_size=4 sequence_length=64 vocab_size=256",
        ),
    ),
}


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain bench --help`` prints, or that of one action."""
    name = words[0] if words else ""
    if name not in ACTIONS:
        return HELP
    action = ACTIONS[name]
    usage = f"usage: questtrain bench {name} [key=value …] [--json]"
    settings = own_settings(action.config, f"bench_{name}")
    examples = "\n".join(f"  questtrain bench {name} {words}" for words in action.examples)
    return "\n\n".join((usage, inspect.getdoc(action.config) or "", settings, examples)) + "\n"


def main(words: Sequence[str]) -> int:
    """Check the settings of one action, measure, and show; its file grows meanwhile."""
    name, *rest = words
    if name not in ACTIONS:
        raise unknown("benchmark", name, ACTIONS)
    action, arguments = ACTIONS[name], parse_arguments(rest)
    config = own_config(arguments, f"bench_{name}", action.config)
    if config is None:
        return 0
    _check_run_alone(config, given_values(arguments.overrides))
    models = action.models(config)
    _check_lists(config)
    module, function = action.measure
    measure = getattr(import_module(f"questtrain.bench.{module}"), function)
    results, device = _start(name, words, config)
    try:
        measure(results, models, config, device)
    except KeyboardInterrupt:
        if results.unfinished is not None:
            rows, file = len(results.rows), results.unfinished
            log.warning("interrupted: %d rows are kept in %s", rows, file)
        raise
    results.finish()
    _show(results, arguments.json)
    return 0


def _check_run_alone(config: BenchConfig, given: Mapping[str, str]) -> None:
    """UserError for a shape beside a run, which has its own."""
    if not isinstance(config, ServeLoadConfig) or config.run is None:
        return
    for name in OF_RANDOM_MODELS:
        if name in given:
            raise UserError(
                f"run= or {name}=, not both: run={config.run} has its own model, bits and"
                " vocabulary."
            )


def _check_lists(config: BenchConfig) -> None:
    """UserError for an empty list of numbers or of choices: nothing would be measured."""
    kind: Any = type(config)
    for key, rules in rules_of(kind).items():
        if getattr(config, key) == [] and not isinstance(rules[0], Text):
            is_choice = isinstance(rules[0], Choices)
            advice = f"choose from {rules[0]}" if is_choice else "give one number or more"
            raise UserError(f"{key}=[]: {advice}.")


def _start(name: str, words: Sequence[str], config: BenchConfig) -> tuple[Results, torch.device]:
    """The results' file and the device; says so where no GPU is measured."""
    from questtrain.bench.environment import environment
    from questtrain.bench.results import Results
    from questtrain.device import choose_device

    device = choose_device(config.device)
    if device.type == "cpu":
        log.warning("%s", _of_cpu(name, config))
    command = shlex.join(["questtrain", "bench", *words])
    output = None if config.output is None else Path(config.output).expanduser()
    return Results(name, environment(device, command), asdict(config), output), device


def _of_cpu(name: str, config: BenchConfig) -> str:
    """What is measured on a CPU, and which model would be quick."""
    from questtrain.kernels import cpu_library

    if name == "train":
        measured = "on a CPU plain torch is measured: the kernels of training are for GPUs"
    elif cpu_library.serves():
        measured = f"on a CPU its own kernels are measured ({cpu_library.serving_path()})"
    else:
        measured = "on a CPU without its kernels the plain torch reference is measured"
    has_run = isinstance(config, ServeLoadConfig) and config.run is not None
    is_quick = has_run or set(config.models) == {"nano"}
    return measured if is_quick else f"{measured}; models=nano is quick"


def _show(results: Results, as_json: bool) -> None:
    """The tables or the JSON on the terminal, and the picture beside the file."""
    from questtrain.bench.figures import draw
    from questtrain.bench.tables import ceilings, tables

    if results.path is not None:
        picture = results.path.with_suffix(".png")
        drawn = draw(results.record, picture)
        log.info("results: %s%s", results.path, f"; picture: {picture}" if drawn else "")
    if as_json:
        print_json(results.record)
        return
    out = console()
    print(f"{results.record['environment']['device']}{ceilings(results.record['ceilings'])}\n")
    for table in tables(results.record):
        out.print(table)
        out.print()
