"""Peak arithmetic rates of GPUs by name, from the vendors' data sheets."""

from __future__ import annotations

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
}
"""Dense BF16 tensor-core FLOP/s by (a part of) the device's name; the first that fits holds."""


def peak_bf16_flops(device_name: str) -> float | None:
    """Peak dense BF16 FLOP/s of the device of that name, or None where it is not known."""
    return next((rate for part, rate in PEAK_BF16_FLOPS.items() if part in device_name), None)
