"""``questtrain train --settings``: every setting, what it is and may be, as it is declared."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

from questtrain.cli.help_page import default_text
from questtrain.cli.hydra_config import compose_mapping, group_choices
from questtrain.config import TrainConfig
from questtrain.config.loading import flatten, group_kind
from questtrain.config.ranges import about, rules_of
from questtrain.config.schema import GROUPS

PAGE = """# Settings

Every setting of `questtrain train` (and of `sweep`, `info`, `data`), what it is, what it may be,
and its default at 30M on C4. The page is what `questtrain train --settings` prints. `[0, 1)` is
0 ≤ x < 1, `(0, inf]` is positive, infinity included. A value outside is one message and exit code
2, before anything is written.

Groups are chosen by name. `--config-dir DIR` adds files of your own (`DIR/model/my-size.yaml`),
which begin with `# @package _global_` if they set more than their group; what is wrong in one is
said with its file and line.

{groups}

| setting | what it is | may be | default |
|---|---|---|---|
{rows}

Rules between settings, each with a message of its own:

- Names (`name`, `model.name`, `data.name`, a sweep's) become folders: not empty, no `.` or `..`,
  nothing absolute, no `-` at the beginning. `name=a/b` makes folders inside `runs_dir`.
- `model.hidden_size` is a multiple of 16, and `model.num_heads` divides it into even widths unless
  `model.head_dim` is given; `model.num_kv_heads` divides `model.num_heads`;
  `micro_batch_size` divides `batch_size`; `quant.hadamard_block` is a power of two.
- `data=stdlib` trains a tokenizer of 257 to 65,536 tokens (`data.vocab_size`).
- `schedule=wsd`: warm-up and decay are at most the whole run. Adam needs `beta1`⁴ < `beta2`.
- `optim.gradient_clip` of 0, null or inf clips nothing.
- `quant.skip` patterns match a layer each, and leave one to quantize (unless `bits=bf16`);
  `quant.method` is what the file of `method=…` says.
- `switch_from` needs `switch_at`, and other bits than `bits`; each of the two phases has a step.
- With `init_from` the model group is the folder's: settings that are given agree with it.
- `quant.group_size` is a power of two that divides all widths of the blocks' layers. What
  `quant.target` sets, the command line overrides, where the runtime holds it (docs/methods.md).
- A run has 1 to 1,000,000,000 steps. On a CPU its estimated memory fits
  into the machine's or the control group's, and `train.threads` into the cores.
- Settings do not read the environment (`${{oc.env:…}}` is refused), because they are written into
  the run's records. The shell can: `name="$JOB"`. `QUESTTRAIN_CACHE` alone is read, as the default
  of `data.cache_dir`.
"""

KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def settings_page() -> str:
    """The page as Markdown."""
    groups = "\n".join(f"- `{group}`: {', '.join(group_choices(group))}" for group in GROUPS)
    given = flatten(compose_mapping("train", TrainConfig, []))
    return PAGE.format(groups=groups, rows="\n".join(_rows(TrainConfig, "", given)))


def _rows(kind: Any, prefix: str, given: dict[str, Any]) -> list[str]:
    """The table's lines of a config dataclass, those of its groups last."""
    hints, rules, words = typing.get_type_hints(kind), rules_of(kind), about(kind)
    own, below = [], []
    for field in fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        group = group_kind(hint)
        if group is not None:
            below += _rows(group, f"{key}.", given)
        if group is hint:
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        valid = [
            _kind_text(hint),
            *(text for rule in rules[field.name] if (text := str(rule)) != "text"),
        ]
        what = words[field.name].replace("<", "\\<")
        cells = (what, ": ".join(valid), f"`{default_text(given.get(key, default))}`")
        own.append(f"| `{key}` | {' | '.join(cells)} |")
    return own + below


def _kind_text(hint: Any) -> str:
    """``whole number or null``, ``list of text``."""
    options = typing.get_args(hint) if not isinstance(hint, type) else ()
    if typing.get_origin(hint) is list:
        return f"list of {_kind_text(options[0])}"
    if type(None) in options:
        return f"{_kind_text(options[0])} or null"
    return KINDS.get(hint, "the settings below")
