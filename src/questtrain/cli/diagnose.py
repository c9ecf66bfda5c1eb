"""``questtrain diagnose``: what quantization does to the gradients of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from questtrain.cli.arguments import own_config, parse_arguments
from questtrain.cli.help_page import own_settings
from questtrain.cli.output import print_json
from questtrain.config.ranges import SIZE, Choices, Interval
from questtrain.config.schema import DEVICE

HELP = """usage: questtrain diagnose run=DIR what=alignment|mask|persistence [key=value …] [--json]

Measures a run at its checkpoints and writes DIR/diagnostics/WHAT.json, which
`questtrain plot WHAT DIR …` draws.

  what=alignment    cosine similarity of the gradient after each block with the gradient when
                    activations are not quantized (figure 2)
  what=mask         fraction of weights that no gradient reaches, at every checkpoint (figure 8)
  what=persistence  how many of the weights masked at one checkpoint are masked at a later one
                    (figure 9); train with train.keep_checkpoints=100 to have several

{settings}

Step 0, the initial weights, needs no checkpoint. To follow the first two while training:
`questtrain train … train.diagnose_every=500`.
"""

WHATS = ("alignment", "mask", "persistence")


@dataclass
class DiagnoseConfig:
    """What is measured, and where."""

    run: Annotated[str, "the run's folder, as `questtrain train` printed it"]
    what: Annotated[str, Choices(WHATS), "see above"]
    batches: Annotated[int, Interval(SIZE), "validation batches of alignment, 8 sequences each"]
    step: Annotated[
        int | None, Interval("[0, 2^53]"), "the checkpoint of alignment; null: the newest"
    ]
    device: Annotated[str, DEVICE, "what it runs on"]


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain diagnose --help`` prints."""
    return HELP.replace("{settings}", own_settings(DiagnoseConfig, "diagnose"))


def main(words: Sequence[str]) -> int:
    """Measure, write and show one diagnosis of a run."""
    arguments = parse_arguments(words)
    config = own_config(arguments, "diagnose", DiagnoseConfig)
    if config is None:
        return 0

    from questtrain.train.diagnose import diagnose

    path, record = diagnose(config.run, config.what, config.batches, config.step, config.device)
    if arguments.json:
        print_json(record)
        return 0
    print("\n".join(_lines(record)))
    print(f"\n{path}; draw it with: questtrain plot {config.what} {config.run}")
    return 0


def _lines(record: dict[str, Any]) -> list[str]:
    """The record as a small table."""
    match record["what"]:
        case "alignment":
            return ["block  cosine similarity"] + [
                f"{block['block'] + 1:>5}  {block['mean']:.4f} ± {block['std']:.4f}"
                for block in record["blocks"]
            ]
        case "mask":
            return ["    step  masked weights"] + [
                f"{point['step']:>8}  {point['fraction']:.4%}" for point in record["points"]
            ] + [f"expected  {record['expected']:.4%} of Gaussian weights"]  # fmt: skip
    head = "     old   masked  still masked at" + "".join(f"{s:>9}" for s in record["steps"][1:])
    rows = zip(record["steps"], record["masked"], record["retained"], strict=True)
    return [head] + [
        f"{step:>8} {count:>8,} {'':<16}"
        + "".join(" " * 9 if share is None else f"{share:>9.1%}" for share in retained[1:])
        for step, count, retained in rows
    ]
