"""``questtrain train``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.help_page import train_settings
from questtrain.cli.hydra_config import to_yaml
from questtrain.cli.settings_page import settings_page
from questtrain.config import TrainConfig
from questtrain.config.loading import config_from_mapping
from questtrain.errors import ErrorOnAnotherRank, UserError
from questtrain.process.ranks import HAS_PARENT, read_task, run_ranks
from questtrain.process.start import python_command

if TYPE_CHECKING:
    from questtrain.data import Tokenizer
    from questtrain.train.task_evaluation import TaskEvaluator

RANK = "--rank"
"""The one word of a process that gpus=N starts: its config comes frozen, as its task."""

HELP = """usage: questtrain train [key=value …]

Trains one Llama with quantized weights and activations. The same command, given again,
continues an interrupted run exactly where its last checkpoint is.

settings (Hydra's override grammar)
{settings}

Deeper settings live in their group: quant.trust_scale, quant.rotation, quant.grid,
quant.target (gguf, …: on the grid that a runtime's files hold), quant.skip,
model.num_layers, train.diagnose_every, train.eval_tasks (hellaswag, bpb:FILE, core,
…: evaluations inside the run), train.backward (exact, or fp8: faster, of rounded
gradients), …; --settings explains them all.

options
  --settings        every setting: what it is, what it may be, its default (docs/settings.md)
  --cfg job         print the resolved configuration and stop
  --config-dir DIR  your own YAML files (DIR/model/my-size.yaml, …) beside ours
  --help            this page

examples
  questtrain train model=nano bits=w4a4 data=stdlib          minutes on two CPU cores
  questtrain train model=100M bits=w4a4                      C4, 100 tokens a parameter
  questtrain train model=30M bits=w1a1 data=text data.files='docs/**/*.md' \\
      data.tokenizer=tokenizer.json
  questtrain train model=30M bits=w3a3 method=lsq quant.scale_weight_decay=0.01
  questtrain train model=30M bits=bf16 logger=wandb seed=1 schedule=wsd
"""


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain train --help`` prints."""
    return HELP.replace("{settings}", train_settings())


def main(words: Sequence[str]) -> int:
    """Train a run, or show its settings; prints its folder."""
    if "--settings" in words:
        print(settings_page(), end="")
        return 0
    if list(words) == [RANK] and HAS_PARENT in os.environ:
        return _train(config_from_mapping(TrainConfig, json.loads(read_task())))
    arguments = parse_arguments(words)
    try:
        config = train_config(arguments)
        _check_one_launcher(config)
    except UserError as error:
        if _speaks():
            raise
        raise ErrorOnAnotherRank(error.exit_code) from error
    if arguments.show_config:
        print(to_yaml(asdict(config)), end="")
        return 0
    if config.gpus is None or config.gpus == 1:
        return _train(config)
    if config.device != "cpu":
        from questtrain.device import check_gpus

        check_gpus(config.device, config.gpus)
    command = [*python_command("questtrain.cli.main"), "train", RANK]
    return run_ranks(command, config.gpus, json.dumps(asdict(config)))


def _train(config: TrainConfig) -> int:
    from questtrain.train.run import train

    folder, _ = train(config, _run_evaluator)
    if _speaks():
        print(folder)
    return 0


def _run_evaluator(config: TrainConfig, tokenizer: Tokenizer) -> TaskEvaluator:
    """What does a run's ``train.eval_tasks``; imported where there are some."""
    from questtrain.inference.evaluate.in_run import RunEvaluator

    return RunEvaluator(config, tokenizer)


def _speaks() -> bool:
    """Whether this process prints what is of all processes of its run."""
    return os.environ.get("RANK", "0") == "0"


def _check_one_launcher(config: TrainConfig) -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if config.gpus is not None and size != "1":
        raise UserError(
            f"gpus={config.gpus} starts the processes itself, and WORLD_SIZE={size} says that"
            " torchrun or srun has started them: leave one of the two out."
        )
