"""csrc/tune_packed.py: the table that it writes is the one that the library reads."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(scope="module")
def tune():
    sys.path.insert(0, str(CSRC))
    try:
        spec = importlib.util.spec_from_file_location("tune_packed", CSRC / "tune_packed.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(CSRC))
    return module


@pytest.fixture(scope="module")
def table(tune):
    text = tune.TABLE.read_text(encoding="utf-8")
    return [tuple(map(int, re.findall(r"\d+", line))) for line in text.splitlines()]


def test_the_table_is_written_as_the_library_has_it(tune, table):
    table_text = sys.modules[tune.Tuning.__module__].table_text
    assert table_text(table) == tune.TABLE.read_text(encoding="utf-8")
    assert all(len(row) == 5 and 0 <= row[4] < len(tune.TILES) * tune.SPLITS for row in table)
    assert {row[0] for row in table} == set(tune.BITS)
    assert {row[1] for row in table} == set(tune.ROWS)


def test_a_tile_that_serves_is_one_that_was_tried(tune, table):
    for _, rows, columns, _, tile in table:
        assert tile in tune.candidates(rows, columns, 132)


def test_candidates_hold_all_rows_and_fill_the_gpu(tune):
    sizes = {tile[0] for tile in tune.TILES}
    for rows in (3, 16, 17, 64, 100, 256):
        for columns in (2048, 22016):
            for tile in tune.candidates(rows, columns, 132):
                size, groups, *_ = tune.TILES[tile % len(tune.TILES)]
                assert size == min((s for s in sizes if s >= rows), default=max(sizes))
                split = tile // len(tune.TILES) + 1
                blocks = -(-columns // (64 * groups)) * split * -(-rows // size)
                assert tune.FILLS * 132 <= blocks <= tune.CROWDS * 132 or split == tune.SPLITS


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so where there is no GPU")
def test_without_a_gpu_it_says_so(tune):
    with pytest.raises(SystemExit, match="error: tiles are measured on a Hopper GPU"):
        tune.main([])
