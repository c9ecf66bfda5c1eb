"""``questtrain export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from questtrain.cli.arguments import own_config, parse_arguments, refuse_options
from questtrain.cli.help_page import own_settings
from questtrain.cli.output import plain_table, print_json
from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.config.model_use import AtStep
from questtrain.config.ranges import Choices
from questtrain.config.schema import DEVICE
from questtrain.errors import UserError
from questtrain.sweep.console import console

if TYPE_CHECKING:
    from questtrain.inference.export.certificate import Certificate

HELP = """usage: questtrain export run=DIR format=FORMAT output=DIR [key=value …]
       questtrain export --list [--json]

Writes a run's model in the format of another program, loads it there, and leaves a certificate
beside it: how near that program's logits come to those of the trained model (docs/export.md).

{settings}

  --list                 the formats, what each can hold, and which programs read it
  --json                 print the certificate (or the list) as JSON

  questtrain export run=runs/first format=packed output=exports/first
"""


@dataclass
class ExportConfig:
    """What is exported, as what, and where to."""

    run: Annotated[str, "the run's folder, as `questtrain train` printed it"]
    format: Annotated[
        str,
        Choices(tuple(EXPORT_FORMATS)),
        "see --list",
    ]
    output: Annotated[str, "the folder to write, which must not exist"]
    step: AtStep
    dtype: Annotated[
        str, Choices(("f32", "f16", "bf16")), "of what is no code: embedding, norms, head"
    ]
    experimental: Annotated[bool, "allow what no program here has been seen to honour"]
    verify: Annotated[bool, "run the export in its program and compare; false: write it only"]
    runtime: Annotated[str | None, "the program that verifies; null: the format's first"]
    device: Annotated[str, DEVICE, "what both run on when they are compared"]


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain export --help`` prints."""
    return HELP.replace("{settings}", own_settings(ExportConfig, "export"))


def main(words: Sequence[str]) -> int:
    """Write an export and say what its certificate says."""
    if "--list" in words:
        return _list(words)
    arguments = parse_arguments(words)
    config = own_config(arguments, "export", ExportConfig)
    if config is None:
        return 0

    from questtrain.device import choose_device
    from questtrain.inference.export.format import Options
    from questtrain.inference.export.source import Source
    from questtrain.inference.export.write import export

    certificate = export(
        Source.open(config.run, config.step),
        config.format,
        Path(config.output).expanduser(),
        Options(dtype=config.dtype, experimental=config.experimental),
        config.runtime,
        config.verify,
        str(choose_device(config.device)),
    )
    show(config.output, certificate, arguments.json)
    return 0


def show(folder: str, certificate: Certificate | None, as_json: bool) -> None:
    """Print what a certificate says, or that there is none."""
    if as_json:
        print_json(certificate and asdict(certificate))
        return
    if certificate is None:
        print(f"{folder}: written, not verified")
        return
    print(f"{folder}: {certificate.format} of {certificate.run}, step {certificate.step}")
    for name, text in _rows(certificate).items():
        print(f"  {name:<18} {text}")
    for limit in certificate.not_expressed:
        print(f"  note: {limit}")


def _rows(certificate: Certificate) -> dict[str, str]:
    """What was measured, in words, by what it is."""
    codes = f"{certificate.codes_different} of {certificate.weights:,} differ"
    found, versions = certificate.comparison, certificate.versions
    if found is None:
        return {"run by": "nothing: its weights alone were compared", "weight codes": codes}
    numbers = (found.largest_logit_difference, found.median_logit_difference)
    texts = certificate.texts_compared
    return {
        "run by": f"{certificate.runtime}"
        f" ({', '.join(f'{name} {number}' for name, number in versions.items())})",
        "weight codes": codes,
        **({} if texts is None else {"token ids": f"the same of {texts} texts"}),
        "logits": "differ by {:.3g} at most, {:.3g} in the median".format(*numbers),
        "most likely token": f"the same at {found.argmax_agreement:.2%} of {found.positions}",
        "perplexity": f"{found.perplexity_exported:.4f}, trained {found.perplexity_trained:.4f}",
    }


def _list(words: Sequence[str]) -> int:
    """The formats as a table, or as JSON; UserError for a word that --list does not take."""
    others = [word for word in words if word not in ("--list", "--json")]
    refuse_options(others, "--list", "--json")
    if others:
        raise UserError(f"--list takes no settings, and {others[0]!r} was given.")
    if "--json" in words:
        print_json(
            [
                {"format": name, "holds": form.holds, "runtimes": [*form.runtimes]}
                for name, form in EXPORT_FORMATS.items()
            ]
        )
        return 0
    table = plain_table(["format", "holds", "run by"])
    for name, form in EXPORT_FORMATS.items():
        table.add_row(name, form.holds, ", ".join(form.runtimes) or "no program here")
    console().print(table)
    return 0
