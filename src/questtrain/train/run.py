"""``questtrain train``: from a validated config to a finished run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from questtrain.config import TrainConfig, non_embedding_params, steps, tokens
from questtrain.data import TokenDataset, prepare
from questtrain.device import choose_device, device_name
from questtrain.errors import TrainingStopped, UserError
from questtrain.train.run_folder import claim_run, read_record, settle_config
from questtrain.train.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> tuple[Path, dict[str, Any]]:
    """Train ``config`` in its run folder; returns the folder and the run record.

    A run that is already complete is left alone. Raises UserError for bad input and
    TrainingStopped when training ends early: diverged, out of memory, a signal.
    """
    device = choose_device(config.device)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    with claim_run(config) as folder:
        dataset = prepare(config.data, tokens_needed=tokens(config))
        fit_vocabulary(config, dataset)
        settle_config(folder, config)
        record = read_record(folder)
        if record is not None and record["status"] == "completed":
            log.info("%s is already complete", folder)
            return folder, record
        tokenizer = dataset.tokenizer.path
        name = "tokenizer.json" if tokenizer.suffix == ".json" else "tokenizer.model"
        shutil.copyfile(tokenizer, folder / name)
        _announce(config, dataset, device)
        try:
            record = Trainer(config, dataset, folder, device).run()
        except torch.OutOfMemoryError as error:
            raise TrainingStopped(_out_of_memory(config, device)) from error
        log.info(
            "validation loss %.4f nats a token after %s tokens (unigram entropy of the data: %.3f)",
            record["val_loss"],
            f"{record['tokens']:,}",
            dataset.unigram_entropy,
        )
        log.info("loss picture: %s", folder / "figures" / "loss.png")
        return folder, record


def _out_of_memory(config: TrainConfig, device: torch.device) -> str:
    micro_batch = config.micro_batch_size or config.batch_size
    if micro_batch == 1:
        return f"out of memory on {device} with one sequence at a time: try a smaller model."
    return (
        f"out of memory on {device} with micro_batch_size={micro_batch}:"
        f" try micro_batch_size={micro_batch // 2} (the result is the same)."
    )


def fit_vocabulary(config: TrainConfig, dataset: TokenDataset) -> None:
    """The model's vocabulary is its tokenizer's: set it, or refuse another one."""
    asked = config.model.vocab_size
    if asked is not None and asked != dataset.vocab_size:
        raise UserError(
            f"model.vocab_size={asked}, but the tokenizer {dataset.tokenizer.name} has"
            f" {dataset.vocab_size} tokens; leave model.vocab_size out."
        )
    config.model.vocab_size = dataset.vocab_size


def _announce(config: TrainConfig, dataset: TokenDataset, device: torch.device) -> None:
    log.info(
        "%s: %s non-embedding parameters, %s, method %s, on %s",
        config.name,
        f"{non_embedding_params(config.model):,}",
        config.bits,
        config.quant.method,
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
