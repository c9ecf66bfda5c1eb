"""Export and verify: write a run in a format, and certify it; certify what was written before."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from questtrain.errors import UserError, WriteFailed, unknown
from questtrain.inference.export import export_format
from questtrain.inference.export.card import add_certificate
from questtrain.inference.export.certificate import FILE, Certificate, hashes, read_certificate
from questtrain.inference.export.format import ExportFormat, Options
from questtrain.inference.export.runtime import require
from questtrain.inference.export.source import Source
from questtrain.inference.export.written import Written
from questtrain.packed import DTYPES
from questtrain.store.files import folder_to_publish, no_such_folder, publish_folder, writing


def export(
    source: Source,
    name: str,
    output: Path,
    options: Options,
    runtime: str | None = None,
    verify: bool = True,
    device: str = "cpu",
) -> Certificate | None:
    """Write ``source`` into a new folder ``output``, and its certificate unless it is not to be
    verified. UserError where the format cannot hold the run or the folder exists, CertificateFailed
    where the runtime computes something else; nothing is left then."""
    form = export_format(name)
    runtime = _runtime(form, runtime)
    if verify and runtime is not None:
        require(form, runtime, device)
    _require_new(output)
    if (reason := form.refusal(source, options)) is not None:
        raise UserError(f"format={name} cannot hold run={source.run}: {reason}")
    with ExitStack() as stack:
        temporary = _make_folder(output, stack)
        with writing(output):
            form.write(source, temporary, options)
        certificate = None
        if verify:
            certificate = Written(form, source, temporary, options, runtime, device).certify()
            with writing(output):
                certificate.write(temporary)
                add_certificate(temporary, certificate)
        _require_new(output)  # another export may have written it meanwhile
        publish_folder(temporary, output)
    return certificate


def _require_new(output: Path) -> None:
    """UserError where there is something under that name, be it a link to nothing, and where it
    would be in another export, whose certificate names all its files."""
    if os.path.lexists(output):
        raise UserError(f"output={output} exists already: choose another folder or remove it.")
    for parent in output.absolute().parents:
        if (parent / FILE).is_file():
            raise UserError(
                f"output={output} lies in an export, {parent}, whose certificate lists all its"
                " files: choose a folder outside it."
            )


def _make_folder(output: Path, stack: ExitStack) -> Path:
    """An empty folder, which ``stack`` removes unless it is published. UserError where there can be
    none."""
    try:
        with writing(output):
            return stack.enter_context(folder_to_publish(output))
    except WriteFailed:
        raise
    except OSError as error:
        raise UserError(f"output={output} cannot be made: {error.strerror}.") from error


def verify_export(
    folder: Path, run: Path, runtime: str | None = None, device: str = "cpu"
) -> Certificate:
    """A new certificate of an export that was written before, with the options of its first. What
    is in the folder stays as it is; UserError where its files, or the run's checkpoint, are not
    those that were certified."""
    if not folder.is_dir():
        raise no_such_folder(str(folder), folder)
    try:
        before = read_certificate(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no certificate.json: it is no export, or one with verify=false."
        ) from error
    if before.dtype not in DTYPES:
        raise UserError(f"{folder / FILE} is damaged: dtype={before.dtype!r} is none.")
    form = export_format(before.format)
    runtime = _runtime(form, runtime or before.runtime)
    if runtime is not None:
        require(form, runtime, device)
    _require_files(folder, before)
    source = Source.open(run, before.step)
    if source.checkpoint.weights_sha256 != before.checkpoint:
        raise UserError(f"{folder} was made of another run than run={run}: {before.run}.")
    options = Options(dtype=before.dtype, experimental=True)
    return Written(form, source, folder, options, runtime, device).certify()


def _require_files(folder: Path, before: Certificate) -> None:
    """UserError where a file is missing, was added, or is not the one that was certified."""
    found = hashes(folder)
    for file in sorted(before.files.keys() | found.keys()):
        if file not in found:
            raise UserError(f"{folder / file} was certified and is missing.")
        if file not in before.files:
            raise UserError(f"{folder / file} is not in the certificate: it was added later.")
        if before.files[file] != found[file]:
            raise UserError(f"{folder / file} is not the file that was certified.")


def _runtime(form: ExportFormat, runtime: str | None) -> str | None:
    """The one that is asked for, else the format's first; None where no program runs it."""
    if runtime is not None and not form.runtimes:
        raise UserError(f"runtime={runtime}: format={form.name} has none that could verify it.")
    if runtime is not None and runtime not in form.runtimes:
        raise unknown(f"runtime of format={form.name}", runtime, form.runtimes)
    return runtime or next(iter(form.runtimes), None)
