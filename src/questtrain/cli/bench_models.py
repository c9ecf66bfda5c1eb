"""The models that a benchmark measures, made from its settings; UserError where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from questtrain.bench.settings import (
    LARGE_MODEL,
    MICRO_BATCH_TOKENS,
    MICRO_BATCH_TOKENS_OF_LARGE,
    DecodeConfig,
    LayerConfig,
    PrefillConfig,
    ServeLoadConfig,
    TrainStepConfig,
)
from questtrain.bench.shapes import LARGER_MODELS
from questtrain.cli.hydra_config import compose_mapping, group_choices
from questtrain.cli.serve import check_packages
from questtrain.config import Bits, ModelConfig, TrainConfig, parse_bits, validate
from questtrain.config.loading import config_from_mapping
from questtrain.config.serve import ServeConfig
from questtrain.errors import UserError, unknown

if TYPE_CHECKING:
    from questtrain.bench.serve.bench import ServedCases

SHARED = ("model", "bits", "batch_size", "sequence_length", "device", "compile")
"""Settings of training that all cases share."""

SERVED_VOCABULARY = 16
"""Of fewer random tokens, the one that ends a document might be the likeliest."""


def layer_models(config: LayerConfig) -> list[ModelConfig]:
    """Models whose linear layers are measured, in formats that the integer kernels have."""
    models, formats = models_named(config.models), [parse_bits(text) for text in config.bits]

    from questtrain.bench.layer.random_tensors import format_of

    for bits in formats:
        format_of(bits)
    return models


def inference_models(
    config: PrefillConfig | DecodeConfig | ServeLoadConfig,
) -> list[ModelConfig]:
    """Models that are packed whole, of ``layers`` blocks."""
    models = models_named(config.models)
    for model in models:
        if config.layers is not None and config.layers > model.num_layers:
            raise UserError(f"layers={config.layers}: {model.name} has 1 to {model.num_layers}.")
        model.vocab_size = config.vocab_size
        model.num_layers = config.layers or model.num_layers
    for bits in [config.bits] if isinstance(config.bits, str) else config.bits:
        _packable(bits)
    return models


def served_cases(config: ServeLoadConfig) -> ServedCases:
    """How servers are set up, and model → case → what it is, first ``bf16``."""
    check_packages("bench serve", ["aiohttp"])

    from questtrain.bench.serve.bench import ServedCases

    if config.vocab_size < SERVED_VOCABULARY:
        raise UserError(f"vocab_size={config.vocab_size}: a server needs {SERVED_VOCABULARY}.")
    if config.run is None:
        any_run = compose_mapping("train", TrainConfig, [f"device={config.device}"])
        typed = config_from_mapping(TrainConfig, any_run)
        models = {
            model.name: {
                str(bits): replace(typed, model=model, bits=str(bits))
                for bits in map(parse_bits, ["bf16", *config.bits])
            }
            for model in inference_models(config)
        }
    else:
        run = _config_of_run(config.run)
        bits = str(_packable(run.bits))
        models = {run.name or run.model.name: {"bf16": replace(run, bits="bf16"), bits: run}}
    settings = {
        "run": "bench",
        "port": 0,
        "max_batch_size": max(config.clients, default=1),
        "max_queue": 1_000_000,
        "context": config.prompt_tokens + config.output_tokens,
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    server = config_from_mapping(ServeConfig, compose_mapping("serve", ServeConfig, words))
    return ServedCases(server, models)


def _config_of_run(run: str) -> TrainConfig:
    """The config of a run's newest checkpoint, or of a packed export."""
    from questtrain.config import at_step
    from questtrain.config.loading import read_config
    from questtrain.packed import PackedFolder, is_packed_folder
    from questtrain.store.checkpoint import latest_checkpoint
    from questtrain.store.files import no_such_folder

    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise no_such_folder(f"run={run}", folder)
    if is_packed_folder(folder):
        return PackedFolder.open(folder).config
    config, checkpoint = read_config(folder / "config.yaml"), latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder} holds no checkpoint yet.")
    return at_step(config, checkpoint.step)


def training_cases(config: TrainStepConfig) -> dict[str, dict[str, TrainConfig]]:
    """Model → case → its training settings, first those of ``bf16``."""
    _check_names(config.models, group_choices("model"))
    return {model: _cases(config, model) for model in config.models}


def _cases(config: TrainStepConfig, model: str) -> dict[str, TrainConfig]:
    cases = {"bf16": _train_config(config, model, "bf16", [])}
    for text in config.cases:
        bits, *settings = text.split() or [""]
        name = " ".join([str(_packable(bits)), *settings])
        cases[name] = _train_config(config, model, bits, settings)
    return cases


def _train_config(
    config: TrainStepConfig, model: str, bits: str, settings: Sequence[str]
) -> TrainConfig:
    """The same work for all: a case may change how it is done, by ``overrides`` and its own
    ``settings``, and no more."""
    extra = [*config.overrides, *settings]
    for word in extra:
        if word.partition("=")[0].partition(".")[0] in SHARED:
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


def models_named(names: Sequence[str]) -> list[ModelConfig]:
    """The shapes of models; UserError for none, or an unknown one."""
    _check_names(names, [*group_choices("model"), *LARGER_MODELS])
    return [_model(name) for name in names]


def _model(name: str) -> ModelConfig:
    if name in LARGER_MODELS:
        return config_from_mapping(ModelConfig, asdict(LARGER_MODELS[name]))
    mapping = compose_mapping("train", TrainConfig, [f"model={name}"])
    return config_from_mapping(ModelConfig, mapping["model"])


def _check_names(names: Sequence[str], choices: Sequence[str]) -> None:
    """UserError for no model, or one that is not among ``choices``."""
    if not names:
        raise UserError(f"models=[]: choose from {', '.join(choices)}.")
    for name in names:
        if name not in choices:
            raise unknown("model", name, choices)


def _packable(text: str) -> Bits:
    bits = parse_bits(text)
    if not bits.quantized:
        raise UserError(f"bits={text} is the rival that is always measured: choose w4a4 or so.")
    return bits
