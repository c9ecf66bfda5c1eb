"""``questtrain train``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.help_page import train_settings
from questtrain.cli.hydra_config import to_yaml
from questtrain.cli.settings_page import settings_page
from questtrain.errors import Elsewhere, UserError

HELP = """usage: questtrain train [key=value …]

Trains one Llama with quantized weights and activations. The same command, given again,
continues an interrupted run exactly where its last checkpoint is.

settings (Hydra's override grammar)
{settings}

Deeper settings live in their group: quant.trust_scale, quant.rotation, quant.grid,
quant.skip, model.num_layers, train.diagnose_every, train.backward (exact, or fp8:
faster, of rounded gradients), …; --settings explains them all.

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
    arguments = parse_arguments(words)
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes of one run
    try:
        config = train_config(arguments)
    except UserError as error:
        if speaks:
            raise
        raise Elsewhere(error.exit_code) from error
    if arguments.show_config:
        print(to_yaml(asdict(config)), end="")
        return 0
    from questtrain.train.run import train

    folder, _ = train(config)
    if speaks:
        print(folder)
    return 0
