"""``questtrain bench layer``, ``prefill``, ``decode``, ``train`` and ``tune``."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from questtrain.bench.shapes import LARGER_MODELS
from questtrain.cli.arguments import Arguments, command_config
from questtrain.cli.bench_settings import (
    DECODE_HELP,
    HELP,
    LARGE_MODEL,
    LAYER_HELP,
    MICRO_BATCH_TOKENS,
    MICRO_BATCH_TOKENS_OF_LARGE,
    PARTS,
    PREFILL,
    PREFILL_HELP,
    TRAIN_HELP,
    TUNE_HELP,
    AnyConfig,
    DecodeConfig,
    LayerConfig,
    PrefillConfig,
    TrainStepConfig,
    TuneConfig,
)
from questtrain.cli.hydra_config import GROUPS, compose_mapping, group_choices
from questtrain.config import Bits, ModelConfig, TrainConfig, parse_bits, validate
from questtrain.config.loading import config_from_mapping, setting_names
from questtrain.errors import UserError, unknown
from questtrain.sweep.console import console

if TYPE_CHECKING:
    import torch

    from questtrain.bench.results import Results

log = logging.getLogger(__name__)

Config = TypeVar("Config")


def main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    actions: dict[str, Callable[[Sequence[str]], int]] = {
        "layer": _layer,
        "prefill": _prefill,
        "decode": _decode,
        "train": _train,
        "tune": _tune,
    }
    if words[0] not in actions:
        raise unknown("benchmark", words[0], actions)
    return actions[words[0]](words[1:])


def _layer(words: Sequence[str]) -> int:
    parsed = _config(words, LAYER_HELP, "bench_layer", LayerConfig)
    if parsed is None:
        return 0
    arguments, config = parsed
    models, bits = _models(config.models), parse_bits(config.bits)
    _not_empty(config, "tokens")
    _not_empty(config, "parts", PARTS)

    from questtrain.bench.layer import bench_layer
    from questtrain.bench.operands import format_of

    formats = format_of(bits)
    results, device = _start("layer", words, config)
    with _kept(results):
        bench_layer(
            results,
            models,
            config.tokens,
            formats,
            config.parts,
            device,
            config.rounds,
            config.milliseconds,
        )
    return _finish(results, arguments)


def _prefill(words: Sequence[str]) -> int:
    parsed = _config(words, PREFILL_HELP, "bench_prefill", PrefillConfig)
    if parsed is None:
        return 0
    arguments, config = parsed
    models = _models(config.models, config.vocab_size, config.layers)
    bits = _packable(config.bits)
    _not_empty(config, "batch_sizes")
    _not_empty(config, "prefill", PREFILL)

    from questtrain.bench.prefill import bench_prefill

    results, device = _start("prefill", words, config)
    with _kept(results):
        bench_prefill(
            results,
            models,
            bits,
            config.batch_sizes,
            config.sequence_length,
            config.prefill,
            device,
            config.rounds,
            config.milliseconds,
            config.compile,
        )
    return _finish(results, arguments)


def _decode(words: Sequence[str]) -> int:
    parsed = _config(words, DECODE_HELP, "bench_decode", DecodeConfig)
    if parsed is None:
        return 0
    arguments, config = parsed
    models = _models(config.models, config.vocab_size, config.layers)
    bits = [_packable(text) for text in config.bits]
    _not_empty(config, "batch_sizes")

    from questtrain.bench.decode import bench_decode

    results, device = _start("decode", words, config)
    with _kept(results):
        bench_decode(
            results,
            models,
            bits,
            config.batch_sizes,
            config.context,
            config.steps,
            device,
            config.rounds,
            config.compile,
        )
    return _finish(results, arguments)


def _train(words: Sequence[str]) -> int:
    parsed = _config(words, TRAIN_HELP, "bench_train", TrainStepConfig)
    if parsed is None:
        return 0
    arguments, config = parsed
    _check_models(config.models, group_choices("model"))
    models = {name: _train_cases(config, name) for name in config.models}

    from questtrain.bench.train_step import bench_train

    results, device = _start("train", words, config)
    with _kept(results):
        bench_train(results, models, config.steps, config.rounds, device, config.profile)
    return _finish(results, arguments)


def _train_cases(config: TrainStepConfig, model: str) -> dict[str, TrainConfig]:
    """Case → its training settings, first those of ``bf16``."""
    cases = {"bf16": _train_config(config, model, "bf16", [])}
    for text in config.cases:
        bits, *settings = text.split() or [""]
        name = " ".join([str(_packable(bits)), *settings])
        cases[name] = _train_config(config, model, bits, settings)
    return cases


def _train_config(
    config: TrainStepConfig, model: str, bits: str, settings: Sequence[str]
) -> TrainConfig:
    """The same work for all: a case may change how it is done, by `overrides` and its own
    ``settings``, and no more."""
    extra = [*config.overrides, *settings]
    for word in extra:
        key = word.partition("=")[0].partition(".")[0]
        if key in ("model", "bits", "batch_size", "sequence_length", "device", "compile"):
            raise UserError(f"{word!r} cannot be a setting of a case: all cases share it.")
    shared = {
        "model": model,
        "model.vocab_size": config.vocab_size,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "micro_batch_size": "null",
        "compile": "auto" if config.compile else "false",
        "tokens_per_param": 1_000_000,  # enough for a step of any batch
        "max_steps": 1,
    }
    words = [*(f"{key}={value}" for key, value in shared.items()), f"bits={bits}", *extra]
    typed = config_from_mapping(TrainConfig, compose_mapping("train", TrainConfig, words))
    if typed.micro_batch_size is None:
        is_large = typed.model.nominal_params > LARGE_MODEL
        usual = MICRO_BATCH_TOKENS_OF_LARGE if is_large else MICRO_BATCH_TOKENS
        tokens = config.micro_batch_tokens or usual
        typed.micro_batch_size = max(1, tokens // config.sequence_length)
    validate(typed)
    return typed


def _tune(words: Sequence[str]) -> int:
    parsed = _config(words, TUNE_HELP, "bench_tune", TuneConfig)
    if parsed is None:
        return 0
    arguments, config = parsed
    models = _models(config.models)
    _not_empty(config, "tokens")

    from questtrain.bench.tune import bench_tune
    from questtrain.device import choose_device

    if choose_device(config.device).type != "cuda":
        raise UserError(f"device={config.device}: tiles are measured on a Hopper GPU, cuda.")
    results, device = _start("tune", words, config)
    with _kept(results):
        bench_tune(
            results,
            models,
            config.tokens,
            device,
            config.rounds,
            config.milliseconds,
            Path(config.table).expanduser(),
        )
    if arguments.json:
        print(json.dumps(results.record, indent=2))
    log.info("table: %s; measurements: %s", config.table, results.path)
    return 0


def _config(
    words: Sequence[str], help_page: str, config_name: str, kind: type[Config]
) -> tuple[Arguments, Config] | None:
    """`command_config`, where a group of training settings is no setting."""
    names = setting_names(kind)
    for word in words:
        key, separator, _ = word.partition("=")
        if separator and key in GROUPS:
            raise unknown("setting", key, names)
    return command_config(words, help_page, config_name, kind)


def _models(
    names: Sequence[str], vocab_size: int | None = None, layers: int | None = None
) -> list[ModelConfig]:
    """The shapes of models by name, cut to ``layers`` blocks."""
    _check_models(names, [*group_choices("model"), *LARGER_MODELS])
    models = []
    for name in names:
        model = _model(name)
        if layers is not None and layers > model.num_layers:
            raise UserError(f"layers={layers}: {name} has 1 to {model.num_layers}.")
        model.vocab_size = vocab_size
        model.num_layers = layers or model.num_layers
        models.append(model)
    return models


def _check_models(names: Sequence[str], choices: Sequence[str]) -> None:
    """UserError for none, or one that is not among ``choices``."""
    if not names:
        raise UserError(f"models=[]: choose from {', '.join(choices)}.")
    for name in names:
        if name not in choices:
            raise unknown("model", name, choices)


def _model(name: str) -> ModelConfig:
    if name in LARGER_MODELS:
        return config_from_mapping(ModelConfig, asdict(LARGER_MODELS[name]))
    mapping = compose_mapping("train", TrainConfig, [f"model={name}"])
    return config_from_mapping(ModelConfig, mapping["model"])


def _packable(text: str) -> Bits:
    bits = parse_bits(text)
    if not bits.quantized:
        raise UserError(f"bits={text} is the rival that is always measured: choose w4a4 or so.")
    return bits


def _not_empty(config: AnyConfig, name: str, choices: Sequence[str] = ()) -> None:
    """UserError for an empty list."""
    if not getattr(config, name):
        advice = f"choose from {', '.join(choices)}" if choices else "give one number or more"
        raise UserError(f"{name}=[]: {advice}.")


def _start(name: str, words: Sequence[str], config: AnyConfig) -> tuple[Results, torch.device]:
    """The results' file and the device; says so where no GPU is measured."""
    from questtrain.bench.environment import environment
    from questtrain.bench.results import Results
    from questtrain.device import choose_device

    device = choose_device(config.device)
    if device.type == "cpu":
        log.warning(
            "on a CPU the plain torch reference is measured, not the kernels; models=nano is quick"
        )
    command = shlex.join(["questtrain", "bench", name, *words])
    output = None if config.output is None else Path(config.output).expanduser()
    return Results(name, environment(device, command), asdict(config), output), device


@contextmanager
def _kept(results: Results) -> Iterator[None]:
    """Around a measurement: one that is interrupted says where its finished part is."""
    try:
        yield
    except KeyboardInterrupt:
        if results.path is not None:
            log.warning("interrupted: %d rows are kept in %s", len(results.rows), results.path)
        raise


def _finish(results: Results, arguments: Arguments) -> int:
    """The tables or the JSON on the terminal, and the picture beside the file."""
    from questtrain.bench.figures import draw
    from questtrain.bench.tables import tables

    if results.path is not None:
        picture = results.path.with_suffix(".png")
        drawn = draw(results.record, picture)
        log.info("results: %s%s", results.path, f"; picture: {picture}" if drawn else "")
    if arguments.json:
        print(json.dumps(results.record, indent=2))
        return 0
    out = console()
    print(f"{results.record['environment']['device']}{_ceilings(results.record['ceilings'])}\n")
    for table in tables(results.record):
        out.print(table)
        out.print()
    return 0


def _ceilings(ceilings: dict[str, Any]) -> str:
    """`: copy 2,900 GB/s, BF16 700 TOPS, …` at the measured limits."""
    from questtrain.bench.tables import number

    parts = [
        f"{name} {number(ceilings[key])} {unit}"
        for name, key, unit in (
            ("copy", "copy_gbps", "GB/s"),
            ("BF16", "bf16_tops", "TOPS"),
            ("FP8", "fp8_tops", "TOPS"),
            ("INT8", "int8_tops", "TOPS"),
        )
        if key in ceilings
    ]
    return ": " + ", ".join(parts) if parts else ""
