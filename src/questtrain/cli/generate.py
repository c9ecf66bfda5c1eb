"""``questtrain generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from questtrain.cli.arguments import command_config
from questtrain.config.ranges import SEED, SIZE, Interval, Text
from questtrain.config.schema import DEVICE, SWITCH

HELP = """usage: questtrain generate run=DIR prompt="…" [key=value …]

Continues a prompt with the newest checkpoint of a run.

  run             the run's folder, as `questtrain train` printed it
  prompt          the text to continue
  max_new_tokens  [128]
  temperature     0 takes the most likely token every time   [0.8]
  top_p           sample from the smallest set of tokens with this probability   [0.95]
  seed            [0]
  step            another checkpoint than the newest
  device          auto, cpu, cuda, cuda:N   [auto]
  packed          weights as packed codes, in the low-bit kernels: true, false, or auto, where
                  the kernels run and the model's weights are quantized   [auto]
"""


PACKED = {"auto": None, "true": True, "false": False}


@dataclass
class GenerateConfig:
    run: str
    prompt: Annotated[str, Text(empty=True, lines=True)]
    max_new_tokens: Annotated[int, Interval(SIZE)]
    temperature: Annotated[float, Interval("[1e-3, 1e3]", also=0)]
    top_p: Annotated[float, Interval("(0, 1]")]
    seed: Annotated[int, Interval(SEED)]
    device: Annotated[str, DEVICE]
    step: Annotated[int | None, Interval("[0, 2^53]")]
    packed: Annotated[str, SWITCH]


def main(words: Sequence[str]) -> int:
    parsed = command_config(words, HELP, "generate", GenerateConfig)
    if parsed is None:
        return 0
    _, config = parsed

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
