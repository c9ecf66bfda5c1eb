"""``questtrain train``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import fill

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.hydra_config import GROUPS, group_choices, to_yaml
from questtrain.cli.settings_page import settings_page
from questtrain.config import TrainConfig
from questtrain.config.loading import config_from_mapping
from questtrain.errors import ErrorOnAnotherRank, UserError
from questtrain.process.ranks import HAS_PARENT, read_task, run_ranks
from questtrain.process.start import python_command

SETTINGS = {
    "model": "size: {model}",
    "bits": "w<W>a<A>, W and A in 1, 1.58, 2..8, fp4, 16 (w4a4, w2a16, w4s24a4), bf16   [w4a4]",
    "method": "{method}   [quest]   (docs/methods.md)",
    "data": "{data}   (docs/data.md)",
    "tokens_per_param": "training tokens a parameter of the nominal size   [100]",
    "max_steps": "stop (and end the schedule) after this many steps",
    "batch_size": "sequences a step   [512; nano 8]",
    "micro_batch_size": "sequences at once on the device; lower it when memory is short",
    "sequence_length": "tokens a sequence   [512; nano 256]",
    "lr": "peak learning rate   [by size, table 3 of the paper]",
    "optim": "{optim}: optim.weight_decay, optim.beta1, optim.gradient_clip, …",
    "schedule": "{schedule}: schedule.warmup_fraction, schedule.final_ratio, …",
    "logger": "{logger}; metrics.jsonl is always written",
    "name": "the run's folder below runs_dir   [from the settings]",
    "runs_dir": "[runs]",
    "seed": "of the initial weights and of the data's order   [0]",
    "device": "auto, cpu, cuda, cuda:N   [auto]",
    "gpus": "train on so many GPUs of this machine, a process each   [one process on device]",
    "compile": "torch.compile: auto (on GPUs), true, false   [auto]",
    "log_every": "steps between rows of metrics   [10]",
    "eval_every": "steps between validations   [500; nano 100]",
    "checkpoint_every": "steps between checkpoints   [1000; nano 200]",
    "resume": "auto: go on where the folder stopped; never; must   [auto]",
}

RANK = "--rank"
"""The one word of a process that gpus=N starts: its config comes frozen, as its task."""

EXAMPLES = """
  questtrain train model=nano bits=w4a4 data=stdlib          minutes on two CPU cores
  questtrain train model=100M bits=w4a4                      C4, 100 tokens a parameter
  questtrain train model=30M bits=w1a1 data=text data.files='docs/**/*.md' \\
      data.tokenizer=tokenizer.json
  questtrain train model=30M bits=w3a3 method=lsq quant.scale_weight_decay=0.01
  questtrain train model=30M bits=bf16 logger=wandb seed=1 schedule=wsd
"""


def help_page() -> str:
    """What ``questtrain train --help`` prints."""
    choices = {group: ", ".join(group_choices(group)) for group in GROUPS}
    lines = [
        fill(f"  {key:<18}{text.format(**choices)}", 108, subsequent_indent=" " * 20)
        for key, text in SETTINGS.items()
    ]
    return (
        "usage: questtrain train [key=value …]\n\n"
        "Trains one Llama with quantized weights and activations. The same command, given again,\n"
        "continues an interrupted run exactly where its last checkpoint is.\n\n"
        "settings (Hydra's override grammar)\n" + "\n".join(lines) + "\n\n"
        "Deeper settings live in their group: quant.trust_scale, quant.rotation, quant.grid,\n"
        "quant.skip, model.num_layers, train.diagnose_every, train.backward (exact, or fp8:\n"
        "faster, of rounded gradients), …; --cfg job shows them all.\n\n"
        "options\n"
        "  --settings        every setting with what it may be and its default (docs/settings.md)\n"
        "  --cfg job         print the resolved configuration and stop\n"
        "  --config-dir DIR  your own YAML files (DIR/model/my-size.yaml, …) beside ours\n"
        "  --help            this page\n\n"
        "examples" + EXAMPLES
    )


def main(words: Sequence[str]) -> int:
    if "--settings" in words:
        print(settings_page(), end="")
        return 0
    if list(words) == [RANK] and HAS_PARENT in os.environ:
        return _train(config_from_mapping(TrainConfig, json.loads(read_task())))
    arguments = parse_arguments(words)
    if arguments.help:
        print(help_page(), end="")
        return 0
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

    folder, _ = train(config)
    if _speaks():
        print(folder)
    return 0


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
