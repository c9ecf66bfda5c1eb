"""Export and verify: write a run in a format, and compare what the runtime makes of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from questtrain.errors import TrainingStopped, UserError, WriteFailed, unknown
from questtrain.inference.export import export_format
from questtrain.inference.export.card import add_certificate
from questtrain.inference.export.certificate import (
    FILE,
    Certificate,
    Comparison,
    compare,
    hashes,
    read_certificate,
)
from questtrain.inference.export.format import Bound, ExportFormat, Options
from questtrain.inference.export.passages import TEXTS, prompts
from questtrain.inference.export.runtime import Answer, ask, require, versions
from questtrain.inference.export.source import Source
from questtrain.packed import DTYPES
from questtrain.store.files import no_such_folder, publish_folder, writing


class CertificateFailed(TrainingStopped):
    """The export does not compute what was trained."""


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
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        _make_folder(temporary, output)
        with writing(output):
            form.write(source, temporary, options)
        certificate = None
        if verify:
            certificate = certify(form, source, temporary, options, runtime, device)
            with writing(output):
                certificate.write(temporary)
                add_certificate(temporary, certificate)
        _require_new(output)  # another export may have written it meanwhile
        publish_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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


def _make_folder(temporary: Path, output: Path) -> None:
    """An empty folder, with its parents; what a killed process of the same number left goes first.
    UserError where there can be none."""
    try:
        with writing(output):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
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
    return certify(form, source, folder, options, runtime, device)


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


def certify(
    form: ExportFormat,
    source: Source,
    folder: Path,
    options: Options,
    runtime: str | None,
    device: str,
) -> Certificate:
    """Compare an export with its run, its weights alone where no program runs the format;
    CertificateFailed where it is not within the bound."""
    weights, different, first = _count_codes(form, source, folder, options)
    if different:
        raise CertificateFailed(
            f"{different:,} of {weights:,} weight codes differ in the export, the first in {first}."
        )
    comparison, texts, bound = None, None, None
    if runtime is not None:
        comparison, texts = _compare(form, source, folder, runtime, device)
        bound = _demand(comparison, form, source, options, runtime, device)
    return Certificate(
        format=form.name,
        runtime=runtime,
        versions={} if runtime is None else versions(form, runtime),
        device=device,
        run=str(source.config.name),
        step=source.checkpoint.step,
        checkpoint=source.checkpoint.weights_sha256,
        bits=source.config.bits,
        dtype=options.dtype,
        weights=weights,
        codes_different=different,
        texts_compared=texts,
        comparison=comparison,
        bound=bound,
        not_expressed=form.limits(source, options, runtime or ""),
        files=hashes(folder),
    )


def _demand(
    comparison: Comparison,
    form: ExportFormat,
    source: Source,
    options: Options,
    runtime: str,
    device: str,
) -> Bound:
    """The bound; CertificateFailed, with where the difference begins, unless it is kept."""
    bound = form.bound(source, options, runtime)
    if (problem := comparison.problem(bound)) is not None:
        where = _first_block(form, source, options, runtime, device, bound)
        raise CertificateFailed(f"{runtime} does not compute what was trained: {problem}. {where}")
    return bound


def _runtime(form: ExportFormat, runtime: str | None) -> str | None:
    """The one that is asked for, else the format's first; None where no program runs it."""
    if runtime is not None and not form.runtimes:
        raise UserError(f"runtime={runtime}: format={form.name} has none that could verify it.")
    if runtime is not None and runtime not in form.runtimes:
        raise unknown(f"runtime of format={form.name}", runtime, form.runtimes)
    return runtime or next(iter(form.runtimes), None)


def _count_codes(
    form: ExportFormat, source: Source, folder: Path, options: Options
) -> tuple[int, int, str | None]:
    """Weights in all layers, how many differ as codes (unquantized ones: as what the options'
    dtype makes of them), and the first layer that has some."""
    weights, different, first = 0, 0, None
    for name in source.linear_names():
        values, folded = form.stored(folder, name)
        codes = source.codes(name)
        if codes is not None:
            wrong = codes.different(values, folded)
        else:
            rounded = source.tensor(f"{name}.weight").to(options.torch_dtype).float()
            wrong = int((rounded != values).sum())
        weights, different = weights + values.numel(), different + wrong
        first = first or (name if wrong else None)
    return weights, different, first


def _compare(
    form: ExportFormat, source: Source, folder: Path, runtime: str, device: str
) -> tuple[Comparison, int | None]:
    """The logits of both, and how many texts both tokenizers were seen to encode the same."""
    asked = prompts(source.tokenizer, source.config.sequence_length)
    answer = ask(form, folder, runtime, asked, device, TEXTS)
    texts = _compare_texts(source, runtime, answer)
    return compare(asked, _trained_logits(form, source, asked, device), answer.logits), texts


def _compare_texts(source: Source, runtime: str, answer: Answer) -> int | None:
    """The number of texts; None where the export has no tokenizer. CertificateFailed where the ids
    of one differ."""
    if answer.token_ids is None:
        return None
    tokenizer = source.tokenizer
    ours = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(TEXTS)]
    for text, wanted, found in zip(TEXTS, ours, answer.token_ids, strict=True):
        if found != wanted:
            shorter = min(len(wanted), len(found))
            place = next((i for i in range(shorter) if wanted[i] != found[i]), shorter)
            raise CertificateFailed(
                f"{runtime} encodes text otherwise than the run did: {text[:40]!r}, from token"
                f" {place} on: {found[place : place + 4]} and not {wanted[place : place + 4]}."
            )
    return len(TEXTS)


@torch.no_grad()
def _trained_logits(
    form: ExportFormat, source: Source, asked: Sequence[Tensor], device: str
) -> Iterator[Tensor]:
    model = source.model(form.is_packed(source), device)
    for tokens in asked:
        yield model(tokens.to(device).unsqueeze(0))[0].float().cpu()


def _first_block(
    form: ExportFormat, source: Source, options: Options, runtime: str, device: str, bound: Bound
) -> str:
    """Where the difference begins: exports of the first 1, 2, … blocks are compared until one is
    not within the bound; by halves, because what differs early differs later."""
    right, wrong = 0, source.config.model.num_layers
    while wrong - right > 1:
        middle = (right + wrong) // 2
        part = source.first(middle)
        with tempfile.TemporaryDirectory() as scratch:
            form.write(part, Path(scratch), options)
            problem = _compare(form, part, Path(scratch), runtime, device)[0].problem(bound)
        right, wrong = (middle, wrong) if problem is None else (right, middle)
    if wrong == 1:
        return "The first block, layers.0, differs already, or what lies around the blocks."
    return f"The first block that differs is layers.{wrong - 1}."
