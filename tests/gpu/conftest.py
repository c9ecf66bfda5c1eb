"""What every GPU test needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def keep_matmul_precision() -> Iterator[None]:
    """Training allows TF32 for the whole process; the references of other tests are exact."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
