"""Blocks of codes against llama.cpp's own dequantizers, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from questtrain.inference.export.gguf_blocks import TYPES, BlockType, dequantize, narrowest

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

ROWS, GROUPS = 7, 2


def packed(kind: BlockType) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of random integers that the type holds, each of them often, and the values that they
    stand for."""
    generator = np.random.default_rng(kind.number)
    every = np.array(sorted(kind.integers), np.int16)
    integers = generator.choice(every, (ROWS, 2 * GROUPS * kind.width))
    units = generator.uniform(-14, 12, (ROWS, GROUPS))
    units = np.exp2(units).astype(np.float16)
    values = integers * np.repeat(units.astype(np.float32), 2 * kind.width, axis=1)
    return kind.blocks(integers, units), values.astype(np.float32)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_llama_cpp_reads_what_was_packed(kind: BlockType) -> None:
    from questtrain.inference.export.llama_cpp import dequantize as by_llama_cpp

    data, values = packed(kind)
    assert data.shape == (ROWS, 2 * GROUPS * kind.size)
    name = kind.name.lower().replace("_k", "_K")
    found = by_llama_cpp(name, data.tobytes(), values.size).numpy()
    np.testing.assert_array_equal(found.reshape(values.shape), values)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_what_a_certificate_reads(kind: BlockType) -> None:
    data, values = packed(kind)
    np.testing.assert_array_equal(dequantize(kind.number, data.reshape(-1), values.shape), values)


@pytest.mark.parametrize(
    ("integers", "columns", "name"),
    [
        ((-1, 1), 640, "Q1_0"),
        ((-1, 1), 64, "Q2_0"),
        ((-1, 0, 1), 768, "TQ1_0"),
        ((-1, 0, 1), 640, "Q2_0"),
        ((-3, -1, 1, 3), 768, "Q2_K"),
        ((-3, -1, 1, 3), 640, "Q4_0"),
        (range(-7, 8, 2), 768, "Q4_0"),
        (range(-3, 4), 768, "Q3_K"),
        (range(-15, 16, 2), 768, "Q4_K"),
        (range(-15, 16, 2), 640, "Q5_0"),
        (range(-12, 13), 768, "Q5_0"),
        (range(-31, 32, 2), 768, "Q5_K"),
        (range(-127, 128, 2), 640, "Q8_0"),
        (range(-255, 256, 2), 768, None),
        ((-1, 1), 48, None),
    ],
)
def test_the_narrowest_type_that_holds_a_grid(
    integers: range | tuple[int, ...], columns: int, name: str | None
) -> None:
    found = narrowest(frozenset(integers), columns)
    assert (found and found.name) == name
