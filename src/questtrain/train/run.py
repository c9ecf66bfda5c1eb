"""``questtrain train``: from a validated config to a finished run."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import torch

from questtrain.config import TrainConfig, bits_text, non_embedding_params, steps, tokens
from questtrain.config.reproducible import check_processes
from questtrain.data import TokenDataset, prepare
from questtrain.data.identity import DataIdentity
from questtrain.device import choose_device, choose_device_of_rank, device_name
from questtrain.errors import UserError
from questtrain.store.run_record import RunRecord, read_run_record
from questtrain.train.determinism import deterministic_algorithms
from questtrain.train.initial_weights import initial_weights
from questtrain.train.machine import check_memory, set_threads
from questtrain.train.parallel import World, join_world
from questtrain.train.record import epochs
from questtrain.train.run_folder import (
    advising_on_disk,
    claim_run,
    run_folder,
    settle_run,
)
from questtrain.train.step import micro_batch_size
from questtrain.train.task_evaluation import MakeEvaluator, TaskEvaluator
from questtrain.train.trainer import Trainer
from questtrain.train.watching import RankEndsAlone

log = logging.getLogger(__name__)

MANY_PASSES = 4
"""From here on repeated data is said as a warning."""


def train(
    config: TrainConfig, make_evaluator: MakeEvaluator | None = None
) -> tuple[Path, RunRecord]:
    """Train ``config`` in its run folder; returns the folder and the run record.

    ``make_evaluator`` makes what does the ``train.eval_tasks``, if there are any. A run that is
    already complete is left alone. Several processes whose environment says that they belong
    together (`questtrain.train.parallel`) train one run. Raises UserError for bad input and
    TrainingStopped when it ends early: diverged, out of memory, a signal, a disk full or failing.
    """
    on_gpus = config.device != "cpu" and torch.cuda.is_available()
    advice = advising_on_disk(run_folder(config))
    with advice, join_world(on_gpus, config.train.rank_timeout) as world, ExitStack() as claims:
        device = world.agree(lambda: _device(config, world))
        folder = world.agree(lambda: _claim(config, world, claims))
        dataset = world.agree_rank_0_first(lambda: _dataset(config, device, world))
        check_same_on_all(DataIdentity.of(dataset), world)
        initial = world.from_rank_0(lambda: initial_weights(config, folder, dataset))
        evaluator = world.agree(lambda: _evaluator(config, folder, dataset, make_evaluator, world))
        record = world.from_rank_0(lambda: settle_run(folder, config, dataset, initial))
        if record is not None and record.status == "completed":
            log.info("%s is already complete", folder)
            return folder, record
        _announce(config, dataset, device, world)
        try:
            with deterministic_algorithms(config.train.reproducible):
                trainer = world.agree(
                    lambda: Trainer(config, dataset, folder, device, world, initial, evaluator)
                )
                record = world.agree(trainer.run)
        except torch.OutOfMemoryError as error:
            raise RankEndsAlone(_out_of_memory(config, device, world)) from error
        log.info(
            "validation loss %.4f nats a token after %s tokens (unigram entropy of the data: %.3f)",
            record.val_loss,
            f"{record.tokens:,}",
            dataset.unigram_entropy,
        )
        log.info("loss picture: %s", folder / "figures" / "loss.png")
        return folder, record


def _device(config: TrainConfig, world: World) -> torch.device:
    world.rows(config.batch_size)
    if config.train.reproducible:
        check_processes(world.size, str(world.size))
    set_threads(config.train.threads)
    if world.size == 1:
        device = choose_device(config.device)
    else:
        device = choose_device_of_rank(config.device, world.local_rank)
    check_memory(config, device, world)
    return device


def _claim(config: TrainConfig, world: World, claims: ExitStack) -> Path:
    """The run's folder, which rank 0 holds for all until ``claims`` close."""
    return claims.enter_context(claim_run(config)) if world.is_first else run_folder(config)


def _dataset(config: TrainConfig, device: torch.device, world: World) -> TokenDataset:
    dataset = prepare(config.data, tokens_needed=tokens(config))
    fit_vocabulary(config, dataset)
    check_memory(config, device, world)
    return dataset


def _evaluator(
    config: TrainConfig,
    folder: Path,
    dataset: TokenDataset,
    make: MakeEvaluator | None,
    world: World,
) -> TaskEvaluator | None:
    """Rank 0's, which has read what it needs; UserError, before the folder is the run's, where it
    cannot. None for a run without tasks, or one that has ended."""
    if not config.train.eval_tasks or not world.is_first or read_run_record(folder) is not None:
        return None
    if make is None:
        raise UserError("train.eval_tasks: this caller of train() gives nothing to evaluate with.")
    return make(config, dataset.tokenizer)


def check_same_on_all(mine: DataIdentity, world: World) -> None:
    """UserError on a rank that reads other data than rank 0: hosts with folders of their own may
    hold different files under one name."""
    first = world.broadcast_object(mine)

    def check() -> None:
        if differences := first.differences(mine, before="on rank 0", after="here"):
            raise UserError(
                f"rank {world.rank} reads other data than rank 0:\n" + "\n".join(differences)
            )

    world.agree(check)


def _out_of_memory(config: TrainConfig, device: torch.device, world: World) -> str:
    micro_batch = micro_batch_size(config, world)
    if micro_batch == 1:
        return f"out of memory on {device} with one sequence at a time: try a smaller model."
    return (
        f"out of memory on {device} with micro_batch_size={micro_batch}:"
        f" try micro_batch_size={micro_batch // 2} (the result is the same)."
    )


def fit_vocabulary(config: TrainConfig, dataset: TokenDataset) -> None:
    """The model's vocabulary is its tokenizer's: set it, or refuse another one. Weights that exist
    may have rows beyond it, which pad."""
    asked = config.model.vocab_size
    if config.init_from is not None and asked is not None:
        if asked < dataset.vocab_size:
            raise UserError(
                f"init_from={config.init_from} knows {asked} tokens, and the data's tokenizer"
                f" {dataset.tokenizer.name} has {dataset.vocab_size}: leave data.tokenizer out, and"
                " it is the folder's."
            )
        return
    if asked is not None and asked != dataset.vocab_size:
        raise UserError(
            f"model.vocab_size={asked}, but the tokenizer {dataset.tokenizer.name} has"
            f" {dataset.vocab_size} tokens; leave model.vocab_size out."
        )
    config.model.vocab_size = dataset.vocab_size


def _announce(
    config: TrainConfig, dataset: TokenDataset, device: torch.device, world: World
) -> None:
    log.info(
        "%s: %s non-embedding parameters, %s, method %s, on %s%s",
        config.name,
        f"{non_embedding_params(config.model):,}",
        bits_text(config),
        config.quant.method,
        "" if world.size == 1 else f"{world.size} × ",
        device_name(device),
    )
    log.info(
        "%s: %s training tokens, vocabulary %s, unigram entropy %.3f nats",
        config.data.name,
        f"{dataset.train.num_tokens:,}",
        f"{dataset.vocab_size:,}",
        dataset.unigram_entropy,
    )
    log.info("%s steps, %s tokens", f"{steps(config):,}", f"{tokens(config):,}")
    _say_passes(epochs(config, dataset), dataset.train.num_tokens)


def _say_passes(count: float, distinct: int) -> None:
    """Repeated tokens teach less than new ones, and a scaling law counts them as new."""
    if count > MANY_PASSES:
        log.warning(
            "%.3g passes (epochs) over %s tokens: beyond about four, repeated tokens teach less and"
            " less (Muennighoff et al., 2023), and a fitted law counts them as new",
            count,
            f"{distinct:,}",
        )
    elif count > 1:
        log.info("%.3g passes (epochs) over %s tokens", count, f"{distinct:,}")
