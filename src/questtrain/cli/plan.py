"""``questtrain plan``: the best precision, size and token count for a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from questtrain.cli.arguments import own_config, parse_arguments, refuse_options, split_paths
from questtrain.cli.help_page import own_settings
from questtrain.cli.output import plain_table, print_json
from questtrain.errors import UserError
from questtrain.scaling.fit import fit_law
from questtrain.scaling.law import Law, read_law
from questtrain.scaling.metric import VAL_LOSS
from questtrain.scaling.numbers import count_text
from questtrain.scaling.paper import PAPER_LAW
from questtrain.scaling.plan import Budget, Choice, extrapolation, plan
from questtrain.scaling.points import law_points
from questtrain.scaling.precision import label_of, label_text
from questtrain.scaling.runs import read_runs
from questtrain.sweep.console import console

HELP = """usage: questtrain plan [LAW.json | RUNS…] [key=value …] [--json]

Which precision, size and token count gives the lowest loss within a budget. The law is that of
`questtrain fit … --json LAW.json`, or is fitted to RUNS; with neither it is the paper's.

{settings}

Give memory and tokens, or flops with or without either. Memory and tokens alone ask for the
largest model that fits; with flops, size is traded against tokens.

  questtrain plan memory=1.6GB tokens=80B
  questtrain plan law.json memory=1.6GB flops=4e20 precisions=4,8,16
"""

COUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
EXAMPLES = {"memory": "1.6GB", "tokens": "80B", "flops": "1e21"}


@dataclass
class PlanConfig:
    """The budget; null sets no limit."""

    memory: Annotated[str | None, "of the blocks' weights, N·P bits: 1.6GB, 800MB, 2GiB"]
    tokens: Annotated[str | None, "training tokens at the most: 80B, 100M, 3e9"]
    flops: Annotated[str | None, "training FLOPs at the most, 6·N·D: 1e21"]
    precisions: Annotated[
        list[str], "only these: 4,8,16, or as in training: w4a4,bf16; empty: all that the law knows"
    ]


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain plan --help`` prints."""
    return HELP.replace("{settings}", own_settings(PlanConfig, "plan"))


def main(words: Sequence[str]) -> int:
    """Show the choices within a budget, the best first."""
    arguments = parse_arguments(words)
    paths, settings = split_paths(arguments.overrides)
    refuse_options(settings, "--json", "--cfg job", "--help")
    arguments.overrides = [
        re.sub(r"^precisions=([^\[].*)$", r"precisions=[\1]", word) for word in settings
    ]
    config = own_config(arguments, "plan", PlanConfig)
    if config is None:
        return 0
    budget = Budget(
        memory_bytes=_quantity("memory", config.memory, BYTES),
        tokens=_quantity("tokens", config.tokens, COUNTS),
        flops=_quantity("flops", config.flops, COUNTS),
    )
    source, law = _law(paths)
    choices = plan(law, budget, [label_of(precision) for precision in config.precisions])
    if arguments.json:
        print_json({"law": source, "choices": [asdict(c) for c in choices]})
    else:
        _print_plan(source, law, choices)
    return 0


def _law(paths: Sequence[str]) -> tuple[str, Law]:
    """Where the law is from, and the law."""
    if not paths:
        return "the paper's", PAPER_LAW
    if len(paths) == 1 and paths[0].endswith(".json"):
        return paths[0], read_law(Path(paths[0]).expanduser())
    points, _ = law_points(read_runs(paths))
    return " ".join(paths), fit_law(points)


def _quantity(key: str, text: str | None, units: dict[str, float]) -> float | None:
    """``80B`` → 8e10, ``1.6GB`` → 1.6e9; UserError with the units that there are."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        known = "B, kB, MB, GB, TB, KiB, MiB, GiB, TiB" if units is BYTES else "k, M, B, T"
        raise UserError(f"{key}={text}: write a number and a unit ({known}): {EXAMPLES[key]}.")
    return float(match[1]) * units[match[2]]


def _print_plan(source: str, law: Law, choices: Sequence[Choice]) -> None:
    out = console()
    has_draws = choices[0].low is not None
    interval = [f"{law.confidence:.0%} interval", "best in"] if has_draws else []
    metric = "loss" if law.metric == VAL_LOSS else law.metric
    numbers = ("params", "tokens", "memory", "FLOPs", metric, *interval)
    table = plain_table(["precision"], numbers)
    for choice in choices:
        table.add_row(
            label_text(choice.precision),
            count_text(choice.params),
            count_text(choice.tokens),
            f"{choice.memory_bytes / 1e9:,.3g} GB",
            f"{choice.flops:.2e}",
            f"{choice.loss:.4f}",
            *_interval(choice),
        )
    out.print(f"law: {source}")
    out.print(table)
    best = choices[0]
    print(
        f"\nbest: {label_text(best.precision)}, {count_text(best.params)} parameters,"
        f" {count_text(best.tokens)} tokens, predicted {metric} {best.loss:.4f}"
    )
    remark = extrapolation(law, best)
    if remark:
        print(f"warning: beyond the law's data: {remark}")
    for warning in law.warnings:
        print(f"warning of the law: {warning}")


def _interval(choice: Choice) -> list[str]:
    if choice.low is None:
        return []
    return [f"{choice.low:.4f} – {choice.high:.4f}", f"{choice.best_share:.0%}"]
