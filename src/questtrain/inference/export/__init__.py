"""Export: a run's model in the format of another program, with a certificate that it computes what
was trained."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.errors import UserError, unknown
from questtrain.inference.export.format import ExportFormat


def export_format(name: str) -> ExportFormat:
    """The format of a name, from the module of that name; UserError for an unknown one, and where a
    package is missing that writes it."""
    if name not in EXPORT_FORMATS:
        raise unknown("format", name, EXPORT_FORMATS)
    entry = EXPORT_FORMATS[name]
    missing = [package for package in entry.needs if find_spec(package) is None]
    if missing:
        raise UserError(
            f"format={name} is written with {missing[0]}, and Python finds no such package:"
            " pip install '.[export]' in the folder of questtrain's sources."
        )
    module = import_module(f"questtrain.inference.export.{name.replace('-', '_')}")
    form: ExportFormat = getattr(module, entry.writer)()
    return form
