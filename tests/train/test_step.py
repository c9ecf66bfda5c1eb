"""One optimizer step: what computes its loss, and that micro-batches are parts of one."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from questtrain.errors import UserError
from questtrain.model import FusedLlama
from questtrain.quant.method import method_config
from questtrain.train.adamw import AdamW
from questtrain.train.optimizer import clipped_step
from questtrain.train.step import TrainingStep

if TYPE_CHECKING:
    from tests.conftest import Compose

CPU = torch.device("cpu")
VOCAB, ROWS, LENGTH = 64, 8, 32


def step_of(
    compose: Compose, bits: str, micro_batch: int = ROWS, method: str = "quest", **train: str
) -> TrainingStep:
    config = compose(
        "nano",
        bits=bits,
        quant=asdict(method_config(method)),
        model={"num_layers": 2, "vocab_size": VOCAB},
        train=train,
        batch_size=ROWS,
        micro_batch_size=micro_batch,
        sequence_length=LENGTH,
    )
    return TrainingStep(config, CPU)


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (ROWS, LENGTH + 1))


@pytest.mark.parametrize("bits", ["bf16", "w4a4", "w8a8", "fp4", "w2a16"])
def test_the_fused_model_where_there_are_kernels(
    compose: Compose, bits: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        step = step_of(compose, bits)
    assert isinstance(step.loss_of, FusedLlama)
    assert "no kernels" not in caplog.text


def test_the_plain_model_elsewhere_and_the_log_says_so(
    compose: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        step = step_of(compose, "w4a4", method="lsq")
        for _ in range(2):
            step(rows(), 1e-3)
    assert not isinstance(step.loss_of, FusedLlama)
    assert caplog.text.count("no kernels for this") == 1


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_micro_batches_are_parts_of_one_batch(compose: Compose, bits: str) -> None:
    """Loss and norm of several steps, in one part and in four. The steps are small: AdamW makes
    whole ones of gradients that are rounding alone."""
    whole, parts = (step_of(compose, bits, micro_batch) for micro_batch in (ROWS, ROWS // 4))
    for seed in range(3):
        expected, found = (step(rows(seed), 1e-4) for step in (whole, parts))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


def test_the_loss_falls_on_a_batch_seen_again(compose: Compose) -> None:
    step = step_of(compose, "w4a4")
    losses = [float(step(rows(), 3e-3)[0]) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_out_of_memory_beside_a_step_without_a_graph(compose: Compose) -> None:
    step, calls = step_of(compose, "w4a4"), []

    def validate() -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        step.between_steps(validate)
    assert len(calls) == 1, "a second try would find no more memory"


def test_fp8_needs_a_gpu(compose: Compose) -> None:
    with pytest.raises(UserError, match=r"needs a GPU with FP8.*train\.backward=exact"):
        step_of(compose, "w4a4", backward="fp8")


@pytest.mark.parametrize("limit", [None, 0, 0.0, float("inf")])
def test_no_clipping(limit: float | None) -> None:
    """Nothing, 0 and infinity leave the gradients as they are: a step of AdamW alone."""
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 64)) for _ in range(2))
    optimizer = AdamW([ours], 0.1, (0.9, 0.95), 1e-8)
    expected = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95))
    for turn in range(3):
        gradient = 100 * torch.linspace(-1, 2, 64).roll(turn)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        expected.step()
        torch.testing.assert_close(clipped_step(optimizer, limit), gradient.norm())
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_is_torchs(limit: float) -> None:
    """AdamW divides as it reads, torch's is given smaller gradients."""
    ours, theirs = (
        [torch.nn.Parameter(torch.linspace(-1, 1, 64) * scale) for scale in (1.0, 2.0)]
        for _ in range(2)
    )
    optimizer = AdamW(ours, 0.1, (0.9, 0.95), 1e-8)
    expected = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.95))
    for turn in range(3):
        for each in (*ours, *theirs):
            each.grad = torch.linspace(-1, 2, 64).roll(turn)
        norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
        expected.step()
        torch.testing.assert_close(clipped_step(optimizer, limit), norm)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
