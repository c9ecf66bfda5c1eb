"""csrc/tune.py: the table that it writes is the one that the library reads."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
spec = importlib.util.spec_from_file_location("tune", CSRC / "tune.py")
tune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tune)


def test_the_table_is_written_as_the_library_has_it():
    text = tune.TABLE.read_text(encoding="utf-8")
    rows = [tuple(map(int, re.findall(r"\d+", line))) for line in text.splitlines()]
    assert tune.table_text(rows) == text
    assert tune.CONFIGURATIONS == 12
    tiles = tune.CONFIGURATIONS * tune.SWIZZLES * tune.ORDERS
    assert all(len(row) == 4 and 0 <= row[3] < tiles for row in rows)
    assert {row[0] for row in rows} == set(tune.TOKENS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so where there is no GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="error: tiles are measured on a Hopper GPU"):
        tune.main([])
