"""Figure 6: how fast the linear layers of a model are, quantization included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from questtrain.bench.block import BlockBenchmark
from questtrain.bench.ceilings import measure_ceilings
from questtrain.bench.operands import Format
from questtrain.bench.products import measure_product
from questtrain.bench.quantizers import measure_quantizers
from questtrain.bench.results import Results, Row
from questtrain.bench.shapes import block_products
from questtrain.config import ModelConfig

log = logging.getLogger(__name__)

PARTS = ("block", "products", "quantizers")
Step = tuple[str, Callable[[], list[Row]]]


def bench_layer(
    results: Results,
    models: Sequence[ModelConfig],
    tokens: Sequence[int],
    formats: Format,
    parts: Sequence[str],
    device: torch.device,
    rounds: int,
    milliseconds: float,
) -> None:
    """Fill ``results``, a shape at a time; what does not fit into memory is logged and left out."""
    results.set_ceilings(measure_ceilings(formats, device))
    for model in models:
        for name, step in _steps(model, tokens, formats, parts, device, rounds, milliseconds):
            try:
                rows = step()
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                log.warning("%s, %s: does not fit into the device's memory", model.name, name)
                continue
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            results.add([{"model": model.name, **row} for row in rows])
            log.info("%s, %s", model.name, name)
    results.finish()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """A GPU's has a class of its own; a CPU's allocator only says so."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _steps(
    model: ModelConfig,
    tokens: Sequence[int],
    formats: Format,
    parts: Sequence[str],
    device: torch.device,
    rounds: int,
    milliseconds: float,
) -> Iterator[Step]:
    """What each step measures, and how."""
    if "block" in parts:
        block = BlockBenchmark(model, formats, device)
        for count in tokens:
            step: Callable[[], list[Row]] = partial(block.measure, count, rounds, milliseconds)
            yield f"block, {count} tokens", step
    rest = (formats, device, rounds, milliseconds)
    if "products" in parts:
        for count in tokens:
            for product in block_products(model):
                step = partial(measure_product, product, count, *rest)
                yield f"{product.name}, {count} tokens", step
    if "quantizers" in parts:
        for count in tokens:
            yield f"quantizers, {count} tokens", partial(measure_quantizers, model, count, *rest)
