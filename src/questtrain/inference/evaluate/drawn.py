"""What lm-evaluation-harness draws at random, alone: the process' own numbers stay as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

PYTHON_SEED, SEED = 0, 1234
"""The harness' own: of Python's random numbers, and of all others, few-shot examples among them."""


@contextmanager
def drawn_with(seed: int | None) -> Iterator[None]:
    """Random numbers as the harness seeds them, or all with one ``seed``; those of before go on
    afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(PYTHON_SEED if seed is None else seed)
        np.random.seed((SEED if seed is None else seed) % 2**32)
        torch.manual_seed((SEED if seed is None else seed) % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
