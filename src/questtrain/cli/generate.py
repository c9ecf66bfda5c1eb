"""``questtrain generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from questtrain.cli.arguments import own_config, parse_arguments
from questtrain.cli.help_page import own_settings
from questtrain.config.model_use import PACKED, AtStep, Packed
from questtrain.config.ranges import SEED, SIZE, Interval, Text
from questtrain.config.schema import DEVICE

HELP = """usage: questtrain generate run=DIR prompt="…" [key=value …]

Continues a prompt with the newest checkpoint of a run.

{settings}

  questtrain generate run=runs/first prompt="def " temperature=0
"""


@dataclass
class GenerateConfig:
    """What is continued, how its tokens are chosen, and by what."""

    run: Annotated[
        str, "the run's folder, as `questtrain train` printed it, or a packed export of it"
    ]
    prompt: Annotated[str, Text(empty=True, lines=True), "the text to continue"]
    max_new_tokens: Annotated[int, Interval(SIZE), "tokens to add at the most"]
    temperature: Annotated[
        float, Interval("[1e-3, 1e3]", also=0), "0 takes the most likely token every time"
    ]
    top_p: Annotated[
        float, Interval("(0, 1]"), "sample from the smallest set of tokens with this probability"
    ]
    seed: Annotated[int, Interval(SEED), "of the choices of tokens"]
    device: Annotated[str, DEVICE, "what it runs on"]
    step: AtStep
    packed: Packed


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain generate --help`` prints."""
    return HELP.replace("{settings}", own_settings(GenerateConfig, "generate"))


def main(words: Sequence[str]) -> int:
    """Print the prompt and what the model makes of it, as it comes."""
    config = own_config(parse_arguments(words), "generate", GenerateConfig)
    if config is None:
        return 0

    from questtrain.inference import generate_text, load_run

    trained = load_run(config.run, config.device, config.step, PACKED[config.packed])
    print(config.prompt, end="", flush=True)
    for piece in generate_text(
        trained,
        config.prompt,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.seed,
    ):
        print(piece, end="", flush=True)
    print()
    return 0
