"""``questtrain info``: what a run will be, before any GPU is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.output import plain_table, print_json
from questtrain.config import (
    TrainConfig,
    bits_text,
    embedding_params,
    flops_per_token,
    non_embedding_params,
    packed_block_bytes,
    parse_bits,
    peak_training_bytes,
    quantizes,
    steps,
    switch_step,
    tokens,
    total_params,
    vector_params,
)
from questtrain.sweep.console import console

HELP = """usage: questtrain info [the settings of `questtrain train`] [--json]

Parameters, tokens, steps, FLOPs and memory of a run, by arithmetic alone.

  questtrain info model=800M bits=w4a4
  questtrain info model=100M bits=w2a2 tokens_per_param=50 --json
"""

FALLBACK_VOCABULARY = 32_000


def describe(config: TrainConfig) -> dict[str, Any]:
    """All numbers as one flat mapping; bytes and FLOPs in their plain units.

    The packed model holds packed block weights, and embedding, head, norms and biases in bf16.
    """
    model, bits = config.model, parse_bits(config.bits)
    vocab_size = model.vocab_size or config.data.vocab_size or FALLBACK_VOCABULARY
    not_packed = embedding_params(model, vocab_size) + vector_params(model)
    flops = flops_per_token(model, vocab_size, config.sequence_length)
    packed = packed_block_bytes(model, bits, config.quant.skip, config.quant)
    return {
        "name": config.name,
        "model": model.name,
        "bits": bits_text(config),
        "method": config.quant.method if quantizes(config) else "none",
        "non_embedding_params": non_embedding_params(model),
        "total_params": total_params(model, vocab_size),
        "vocab_size": vocab_size,
        "tokens": tokens(config),
        "steps": steps(config),
        "switch_step": switch_step(config),
        "batch_tokens": config.batch_size * config.sequence_length,
        "lr": config.lr,
        "flops_per_token": flops,
        "training_flops": flops * tokens(config),
        "training_memory_bytes_estimate": peak_training_bytes(config, vocab_size),
        "packed_block_bytes": packed,
        "bf16_block_bytes": packed_block_bytes(model, parse_bits("bf16")),
        "packed_model_bytes": packed + 2 * not_packed,
    }


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain info --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Show a run's numbers."""
    arguments = parse_arguments(words)
    facts = describe(train_config(arguments))
    if arguments.json:
        print_json(facts)
        return 0
    table = plain_table(["", ""])
    table.show_header = False
    for label, text in _rows(facts):
        table.add_row(label, text)
    console().print(table)
    return 0


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    ratio = facts["packed_block_bytes"] / facts["bf16_block_bytes"]
    return [
        ("run", facts["name"]),
        ("parameters, non-embedding", f"{facts['non_embedding_params']:,}"),
        ("parameters, total", f"{facts['total_params']:,}  (vocabulary {facts['vocab_size']:,})"),
        ("tokens", f"{facts['tokens']:,}"),
        ("steps", f"{facts['steps']:,}  of {facts['batch_tokens']:,} tokens"),
        *_switch_rows(facts),
        ("peak learning rate", f"{facts['lr']:g}"),
        ("FLOPs", f"{facts['training_flops']:.3g}  ({facts['flops_per_token']:.3g} a token)"),
        ("training memory (estimate)", f"{_gib(facts['training_memory_bytes_estimate'])} GiB"),
        (
            "block weights, packed",
            f"{_gib(facts['packed_block_bytes'])} GiB  ({ratio:.3f} of bf16's)",
        ),
        ("model, packed", f"{_gib(facts['packed_model_bytes'])} GiB"),
    ]


def _switch_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the run changes its bits, if it does."""
    if facts["switch_step"] is None:
        return []
    before, _, after = facts["bits"].partition("@")
    return [("bits", f"{before} for {facts['switch_step']:,} steps, then {after.split('-', 1)[1]}")]


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"
