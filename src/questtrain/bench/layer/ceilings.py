"""What this device can do at best, measured in the same run: memory bandwidth and product rates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from questtrain.bench.layer.products import product_cases
from questtrain.bench.layer.quantizers import copy_calls
from questtrain.bench.layer.random_tensors import Format
from questtrain.bench.shapes import ProductShape
from questtrain.bench.timing import measure

EDGE = {"cuda": 8192, "cpu": 128}
COPY_BYTES = {"cuda": 2 << 30, "cpu": 8 << 20}
RATES = ("bf16", "fp8", "int8")
MILLISECONDS = {"cuda": 20.0, "cpu": 1.0}


def measure_ceilings(formats: Format, device: torch.device, rounds: int = 5) -> dict[str, Any]:
    """``copy_gbps`` (10⁹ bytes read and written a second), and ``bf16_tops``, ``fp8_tops`` (where
    the device has it), ``int8_tops`` (ours) at a product of ``edge``³."""
    edge, size = EDGE[device.type], COPY_BYTES[device.type]
    product = ProductShape("ceiling", edge, edge)
    all_cases, _ = product_cases(product, edge, formats, device)
    cases = {case: all_cases[case] for case in RATES if case in all_cases}
    cases["copy"] = copy_calls(size, device)
    timings = measure(cases, rounds, MILLISECONDS[device.type], device)
    rates = {
        f"{case}_tops": product.operations(edge) / timing.median / 1e6
        for case, timing in timings.items()
        if case != "copy"
    }
    return {
        "copy_gbps": size / timings["copy"].median / 1e3,
        **rates,
        "edge": edge,
        "copy_bytes": size,
        "timings": {case: asdict(timing) for case, timing in timings.items()},
    }
