"""``questtrain generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from questtrain.cli.arguments import command_config
from questtrain.errors import UserError, unknown

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
    prompt: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    device: str
    step: int | None
    packed: str


def main(words: Sequence[str]) -> int:
    parsed = command_config(words, HELP, "generate", GenerateConfig)
    if parsed is None:
        return 0
    _, config = parsed
    _check(config)

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


def _check(config: GenerateConfig) -> None:
    if config.packed not in PACKED:
        raise unknown("packed", config.packed, PACKED)
    if config.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={config.max_new_tokens} must be at least 1.")
    if not config.temperature >= 0:
        raise UserError(f"temperature={config.temperature} must not be negative.")
    if not 0 < config.top_p <= 1:
        raise UserError(f"top_p={config.top_p} must lie in (0, 1].")
