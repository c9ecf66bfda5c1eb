"""``questtrain diagnose``: figures 2, 8 and 9 from the checkpoints of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from questtrain.config import bits_at, bits_text, parse_bits, quantizes
from questtrain.config.loading import read_config
from questtrain.data import TokenDataset, prepare
from questtrain.device import choose_device, device_name
from questtrain.errors import UserError
from questtrain.model import Llama
from questtrain.store.checkpoint import checkpoint_at
from questtrain.store.checkpoint_folders import checkpoint_folders, step_of
from questtrain.store.files import no_such_folder, write_json
from questtrain.store.run_record import HEAD_COLUMNS, identity_columns
from questtrain.train.diagnostics import (
    diagnostic_batches,
    expected_masked_fraction,
    gradient_alignment,
    masked_fraction,
    weight_quantizers,
)
from questtrain.train.evaluate import loss_function
from questtrain.train.run import fit_vocabulary

Bits = NDArray[np.uint8]


class DiagnosedRun:
    """A run's model, at any step that has a checkpoint, and at step 0, where its initial weights
    follow from its seed unless they are others'; of a run that switches its bits the steps where it
    quantizes."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        if not folder.is_dir():
            raise no_such_folder(f"run={folder}", folder)
        self.folder, self.device = folder, device
        self.config = read_config(folder / "config.yaml")
        saved = [step_of(path) for path in checkpoint_folders(folder)]
        if not quantizes(self.config):
            raise UserError(f"{folder} is a BF16 run: there is no quantization to diagnose.")
        if not saved:
            raise UserError(f"{folder} holds no checkpoint yet.")
        first = () if self.config.init_from else (0,)  # others' weights are not ours to keep
        self.steps = sorted({step for step in (*first, *saved) if self._is_quantized(step)})
        if not self.steps:
            raise UserError(
                f"{folder} has no checkpoint of a quantized model:"
                f" {bits_text(self.config)}, and the newest is of step {max(saved)}."
            )

    def model(self, step: int) -> Llama:
        """The model as it is trained; UserError if there is no checkpoint of ``step``."""
        model = Llama(self.config.model, bits_at(self.config, step), self.config.quant)
        if step == 0:
            model.init_weights(torch.Generator().manual_seed(self.config.seed))
        else:
            checkpoint_at(self.folder, step).load_weights(model)
        return model.to(self.device)

    def _is_quantized(self, step: int) -> bool:
        return parse_bits(bits_at(self.config, step)).quantized


def diagnose(
    run: str | Path, what: str, batches: int = 8, step: int | None = None, device: str = "auto"
) -> tuple[Path, dict[str, Any]]:
    """Measure ``what`` (alignment, mask or persistence); returns the file written and its content.

    ``step`` and ``batches`` are alignment's: the checkpoint (the newest by default) and how many
    validation batches. Raises UserError for a folder without a quantized run.
    """
    diagnosed = DiagnosedRun(Path(run).expanduser(), choose_device(device))
    match what:
        case "alignment":
            facts = _alignment(diagnosed, batches, max(diagnosed.steps) if step is None else step)
        case "mask":
            facts = _mask(diagnosed)
        case _:
            facts = _persistence(diagnosed)
    columns = identity_columns(diagnosed.config)
    record = {
        "what": what,
        **{column: columns[column] for column in HEAD_COLUMNS},
        **facts,
        "device": device_name(diagnosed.device),
        "torch_version": torch.__version__,
    }
    path = diagnosed.folder / "diagnostics" / f"{what}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)
    return path, record


def _alignment(run: DiagnosedRun, batches: int, step: int) -> dict[str, Any]:
    config, model = run.config, run.model(step)
    loss_of = loss_function(model, run.device, config.train.autocast)
    dataset = _dataset(run)
    by_batch, tokens = [], 0
    for batch in diagnostic_batches(config, dataset.validation, batches):
        tokens = max(tokens, batch[:, 1:].size)
        on_device = torch.from_numpy(batch).to(run.device)
        by_batch.append(gradient_alignment(model, loss_of, on_device))
    blocks = [
        {"block": block, "mean": statistics.fmean(values), "std": statistics.pstdev(values)}
        for block, values in enumerate(zip(*by_batch, strict=True))
    ]
    return {"step": step, "batches": len(by_batch), "batch_tokens": tokens, "blocks": blocks}


def _dataset(run: DiagnosedRun) -> TokenDataset:
    """What the run is validated on; UserError says which settings it goes by, which are not those
    of the command."""
    try:
        dataset = prepare(run.config.data, tokens_needed=1)
        fit_vocabulary(run.config, dataset)
    except UserError as error:
        raise UserError(
            f"alignment is measured on the run's validation data, as {run.folder / 'config.yaml'}"
            f" names it: {error}"
        ) from error
    return dataset


def _mask(run: DiagnosedRun) -> dict[str, Any]:
    points = [{"step": step, "fraction": masked_fraction(run.model(step))} for step in run.steps]
    return {"expected": expected_masked_fraction(run.model(run.steps[0])), "points": points}


def _persistence(run: DiagnosedRun) -> dict[str, Any]:
    """``retained[old][new]``: of the weights masked at the old step, the share masked later."""
    steps = run.steps
    if len(steps) < 3:
        raise UserError(
            f"{run.folder} keeps one checkpoint: persistence compares several. Train with a smaller"
            " checkpoint_every and train.keep_checkpoints=100."
        )
    masked = [list(_masked_weights(run.model(step))) for step in steps]
    counts = [sum(_count(layer) for layer in layers) for layers in masked]
    retained: list[list[float | None]] = [[None] * len(steps) for _ in steps]
    for old in range(len(steps)):
        for new in range(old + 1, len(steps)):
            still = sum(_count(a & b) for a, b in zip(masked[old], masked[new], strict=True))
            retained[old][new] = still / counts[old] if counts[old] else None
    return {"steps": steps, "masked": counts, "retained": retained}


def _masked_weights(model: Llama) -> Iterator[Bits]:
    """Each layer's M = 0 as packed bits."""
    for layer, quantizer in weight_quantizers(model):
        yield np.packbits((~quantizer.mask(layer.weight)).cpu().numpy().ravel())


def _count(bits: Bits) -> int:
    return int(np.unpackbits(bits).sum())
