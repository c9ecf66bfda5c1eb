"""Figure 6: how fast the linear layers of a model are, quantization included, part by part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from questtrain.bench.layer.bf16_block import Bf16Block
from questtrain.bench.layer.block import BlockBenchmark
from questtrain.bench.layer.ceilings import measure_ceilings
from questtrain.bench.layer.products import measure_product
from questtrain.bench.layer.quantizers import measure_quantizers
from questtrain.bench.layer.random_tensors import Format, format_of
from questtrain.bench.results import Results, Row
from questtrain.bench.settings import LayerConfig
from questtrain.bench.shapes import block_products
from questtrain.bench.timing import Sampler, measure
from questtrain.config import ModelConfig, parse_bits
from questtrain.device import is_out_of_memory

log = logging.getLogger(__name__)

Step = tuple[str, Callable[[], list[Row]]]


def bench_layer(
    results: Results, models: Sequence[ModelConfig], config: LayerConfig, device: torch.device
) -> None:
    """Fill ``results``, a shape at a time; what does not fit into memory is logged and left out."""
    formats = {str(bits): format_of(bits) for bits in map(parse_bits, config.bits)}
    results.set_ceilings(measure_ceilings(next(iter(formats.values())), device))
    for model in models:
        for bits, name, step in _all_steps(model, config, formats, device):
            try:
                rows = step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                log.warning(
                    "%s, %s, %s: does not fit into the device's memory", model.name, bits, name
                )
                continue
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            results.add([{"model": model.name, "bits": bits, **row} for row in rows])
            log.info("%s, %s, %s", model.name, bits, name)


def _all_steps(
    model: ModelConfig, config: LayerConfig, formats: Mapping[str, Format], device: torch.device
) -> Iterator[tuple[str, str, Callable[[], list[Row]]]]:
    """The steps of each format; BF16 is measured beside each, its compiled parts are shared."""
    bf16_block = Bf16Block(device)
    for bits, each in formats.items():
        for name, step in _steps(model, config, each, bf16_block):
            yield bits, name, step


def _steps(
    model: ModelConfig, config: LayerConfig, formats: Format, bf16_block: Bf16Block
) -> Iterator[Step]:
    """What each step measures, and how."""
    device = bf16_block.device
    sample: Sampler = partial(
        measure, rounds=config.rounds, milliseconds=config.milliseconds, device=device
    )
    if "block" in config.parts:
        block = BlockBenchmark(model, formats, bf16_block)
        for count in config.tokens:
            yield f"block, {count} tokens", partial(block.measure, count, sample)
    rest = (formats, device, sample)
    if "products" in config.parts:
        for count in config.tokens:
            for product in block_products(model):
                step = partial(measure_product, product, count, *rest)
                yield f"{product.name}, {count} tokens", step
    if "quantizers" in config.parts:
        for count in config.tokens:
            yield f"quantizers, {count} tokens", partial(measure_quantizers, model, count, *rest)
