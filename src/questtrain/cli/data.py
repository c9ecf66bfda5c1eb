"""``questtrain data prepare`` and ``questtrain data inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.output import plain_table, print_json
from questtrain.config import tokens
from questtrain.errors import UserError, unknown
from questtrain.sweep.console import console

HELP = """usage: questtrain data prepare [the settings of `questtrain train`]
       questtrain data inspect [the same settings] [--json] [--verify]

prepare makes the token shards that a run needs, once; what exists is never made again.
inspect shows what is prepared (and prepares a little, if nothing is); --verify checks every
shard against its checksum.

  questtrain data prepare data=c4 model=100M tokens_per_param=50
  questtrain data prepare data=text data.files='docs/**/*.md' data.tokenizer=tokenizer.json
  questtrain data inspect data=stdlib
"""

ACTIONS = ("prepare", "inspect")


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain data --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Prepare shards, or show what is prepared."""
    action, verify = words[0], "--verify" in words
    arguments = parse_arguments([word for word in words[1:] if word != "--verify"])
    if action not in ACTIONS:
        raise unknown("action of `questtrain data`", action, ACTIONS)
    if verify and action == "prepare":
        raise UserError("--verify belongs to `questtrain data inspect`.")
    config = train_config(arguments)

    from questtrain.data import open_dataset, prepare
    from questtrain.data.inspect import describe

    if action == "prepare":
        dataset = prepare(config.data, tokens_needed=tokens(config))
    else:
        dataset = open_dataset(prepare(config.data, tokens_needed=1).folder)
    if verify:
        dataset.verify()
    facts = describe(dataset)
    if arguments.json:
        print_json(facts)
    else:
        _print_table(facts)
    return 0


def _print_table(facts: dict[str, Any]) -> None:
    table = plain_table([facts["name"]], ["tokens", "documents", "shards", "MiB", "bytes a token"])
    for split in ("train", "validation"):
        part = facts[split]
        ratio = part["bytes_per_token"]
        table.add_row(
            split,
            f"{part['tokens']:,}",
            "?" if part["documents"] is None else f"{part['documents']:,}",
            f"{part['shards']:,}",
            f"{part['bytes'] / 2**20:,.1f}",
            "?" if ratio is None else f"{ratio:.2f}",
        )
    console().print(table)
    print(f"\ntokenizer        {facts['tokenizer']}, vocabulary {facts['vocab_size']:,}")
    print(f"ids              {facts['dtype']}; {facts['bos_id']} begins documents")
    print(f"unigram entropy  {facts['unigram_entropy']:.3f} nats a token")
    print(f"complete         {'yes' if facts['complete'] else 'no: more can be prepared'}")
    for reason, count in facts["skipped"].items():
        print(f"skipped          {count:,} documents: {reason}")
    if facts["unknown_tokens"]:
        print(f"unknown          {facts['unknown_tokens']:,} tokens stand for text outside of it")
    if facts["lost_characters"]:
        print(f"lost             {facts['lost_characters']:,} characters that it does not know")
    print(f"folder           {facts['folder']}")
    print(f"\nthe first document begins:\n{facts['sample'][:300]}")
