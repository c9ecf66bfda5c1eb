"""``README.md`` of an export: the card that model hubs show.

It has the record of the run, how the model is loaded, and, once there is a certificate, its
numbers. Whoever publishes the model edits it, first of all for a license: so it is none of the
files that `questtrain verify` expects unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from questtrain.store.files import write_text

if TYPE_CHECKING:
    from questtrain.inference.export.certificate import Certificate
    from questtrain.inference.export.source import Source

FILE = "README.md"
LICENSE = "No license is stated: whoever publishes this model chooses one."


def write_card(
    source: Source, folder: Path, loading: str, library: str | None = None, tags: Sequence[str] = ()
) -> None:
    """``loading`` is Markdown: which programs load the folder, and how. ``library`` is the hub's
    name of the one that does (``library_name``)."""
    bits, columns = str(source.bits), {k: v for k, v in source.columns.items() if v is not None}
    head = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["questtrain", bits, *tags],
    }
    head = {key: value for key, value in head.items() if value is not None}
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {source.config.name}",
        f"A {columns['model']} language model of {columns['non_embedding_params']:,} parameters"
        f" without embedding and head, trained in {bits} (method {columns['method']}) by"
        f" questtrain, after step {source.checkpoint.step}. {LICENSE}",
        f"## How to load it\n\n{loading.strip()}",
        f"## The run\n\n{_table(columns)}",
    ]
    write_text(folder / FILE, "\n\n".join(sections) + "\n")


def add_certificate(folder: Path, certificate: Certificate) -> None:
    """Put a certificate's numbers into the card, where the format wrote one."""
    path = folder / FILE
    if not path.is_file():
        return
    found = certificate.comparison
    if found is None:
        return
    versions = ", ".join(f"{name} {number}" for name, number in certificate.versions.items())
    rows = {
        "loaded by": f"{certificate.runtime} ({versions}) on {certificate.device}",
        "weight codes that differ": f"{certificate.codes_different} of {certificate.weights:,}",
        "largest difference of a logit": f"{found.largest_logit_difference:.3g}",
        "median difference of the logits": f"{found.median_logit_difference:.3g}",
        "same most likely token": f"{found.argmax_agreement:.2%} of {found.positions} positions",
        "perplexity of the passages": f"{found.perplexity_exported:.4f},"
        f" trained {found.perplexity_trained:.4f}",
    }
    limits = "".join(f"\n- {limit}" for limit in certificate.not_expressed)
    text = (
        "## What it computes\n\nThe same prompts went through this folder and through the trained"
        " model (`certificate.json`; `questtrain verify` repeats it):\n\n" + _table(rows)
    )
    text += f"\n\nWhat it does not express:\n{limits}" if limits else ""
    write_text(path, f"{path.read_text(encoding='utf-8')}\n{text}\n")


def _table(rows: Mapping[str, Any]) -> str:
    """Two columns of Markdown."""
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """A value in one line; bars would end the cell."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
