"""A step replayed as one CUDA graph computes what its kernels compute launched one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from questtrain.store.checkpoint import latest_checkpoint
from questtrain.train.divergence import LossWatch
from questtrain.train.saved_state import load_state, save_state
from questtrain.train.step import WARM_STEPS, TrainingStep
from questtrain.train.switch import switched
from tests.gpu.kernel_cases import needs_kernels, whatever_training_warns_of

if TYPE_CHECKING:
    from tests.conftest import Compose

pytestmark = [pytest.mark.gpu, needs_kernels, *whatever_training_warns_of]

VOCAB, ROWS, LENGTH = 512, 8, 64
STEPS = WARM_STEPS + 6


def step_of(
    compose: Compose, settings: str, graph: bool, compiles: bool = False, device: str = "cuda"
) -> TrainingStep:
    bits, *words = settings.split()
    shape = {"num_kv_heads": 2, "tie_embeddings": True} if "shared-heads" in words else {}
    train = dict(word.removeprefix("train.").split("=") for word in words if "train." in word)
    config = compose(
        "nano",
        bits=bits,
        model={"num_layers": 2, "hidden_size": 256, "num_heads": 4, "vocab_size": VOCAB, **shape},
        train={**train, "cuda_graph": graph},
        compile=str(compiles).lower(),
        batch_size=ROWS,
        micro_batch_size=ROWS // 2 if "in-parts" in words else ROWS,
        sequence_length=LENGTH,
    )
    return TrainingStep(config, torch.device(device))


def batch(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, LENGTH + 1))


def loss_now(step: TrainingStep) -> Tensor:
    """As validation computes it."""
    tokens = torch.from_numpy(batch(1000)).cuda()
    with torch.no_grad():
        return step.loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def assert_same(found: TrainingStep, expected: TrainingStep) -> None:
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def pair(compose: Compose, request: pytest.FixtureRequest) -> tuple[TrainingStep, TrainingStep]:
    """The same step with and without a graph."""
    settings = getattr(request, "param", "w4a4")
    return step_of(compose, settings, graph=True), step_of(compose, settings, graph=False)


@pytest.mark.parametrize(
    "pair",
    [
        *("bf16", "w4a4", "w1a1", "w8a8", "bf16 in-parts", "w4a4 in-parts"),
        *("w4a4 train.save=packed", "w4a4 train.backward=fp8", "w4a4 train.backward=fp8 in-parts"),
        *("w4a4 shared-heads", "w4a4 shared-heads in-parts", "bf16 shared-heads"),
    ],
    indirect=True,
)
def test_losses_norms_and_weights_are_the_same(pair: tuple[TrainingStep, TrainingStep]) -> None:
    graphed, eager = pair
    seen = []
    for seed in range(STEPS):
        (loss, norm), expected = (step(batch(seed), 1e-3) for step in (graphed, eager))
        assert torch.equal(loss, expected[0])
        assert torch.equal(norm, expected[1])
        seen.append(loss)
    assert_same(graphed, eager)
    assert len({float(loss) for loss in seen}) == STEPS, "a returned loss is not overwritten"


def test_compiled(compose: Compose) -> None:
    graphed, eager = (step_of(compose, "w4a4", graph, compiles=True) for graph in (True, False))
    for seed in range(STEPS):
        losses = [step(batch(seed), 1e-3)[0] for step in (graphed, eager)]
        assert torch.equal(*losses)
    assert_same(graphed, eager)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one(compose: Compose) -> None:
    pair = [step_of(compose, "w4a4", graph, device="cuda:1") for graph in (True, False)]
    for seed in range(STEPS):
        losses = [step(batch(seed), 1e-3)[0] for step in pair]
        assert torch.equal(*losses)
    assert_same(*pair)


def test_a_replay_allocates_next_to_nothing(pair: tuple[TrainingStep, TrainingStep]) -> None:
    graphed, eager = pair
    for step in pair:
        for seed in range(WARM_STEPS + 1):
            step(batch(seed), 1e-3)
    allocations = [_allocations(step) for step in (graphed, eager)]
    assert allocations[0] < allocations[1] / 2


def test_validation_sees_the_weights_of_now(pair: tuple[TrainingStep, TrainingStep]) -> None:
    graphed, eager = pair
    for seed in range(STEPS):
        for step in pair:
            step(batch(seed), 1e-2)
        assert torch.equal(loss_now(graphed), loss_now(eager))
    assert_same(graphed, eager)


def test_what_validation_derived_is_given_back(pair: tuple[TrainingStep, TrainingStep]) -> None:
    graphed, _ = pair
    for seed in range(STEPS):
        graphed(batch(seed), 1e-3)
    before = torch.cuda.memory_allocated()
    loss_now(graphed)
    assert torch.cuda.memory_allocated() > before
    graphed(batch(STEPS), 1e-3)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_weights_written_in_place_are_seen(pair: tuple[TrainingStep, TrainingStep]) -> None:
    """As a checkpoint's are."""
    for seed in range(STEPS):
        for step in pair:
            step(batch(seed), 1e-3)
    halved = {name: value / 2 for name, value in pair[1].model.state_dict().items()}
    for step in pair:
        step.model.load_state_dict(halved)
    for seed in range(2):
        losses = [step(batch(seed), 1e-3)[0] for step in pair]
        assert torch.equal(*losses)
    assert_same(*pair)


def test_its_memory_goes_to_who_needs_it(pair: tuple[TrainingStep, TrainingStep]) -> None:
    """A validation that finds no memory is done again without the graph; training goes on."""
    for seed in range(STEPS):
        for step in pair:
            step(batch(seed), 1e-3)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    reserved = []

    def validate() -> None:
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
        if len(reserved) == 1:
            raise torch.OutOfMemoryError("as if it were full")

    pair[0].between_steps(validate)
    assert reserved[0] == before > reserved[1]
    for seed in range(STEPS):
        losses = [step(batch(seed), 1e-3)[0] for step in pair]
        assert torch.equal(*losses)
    assert_same(*pair)


def test_a_switch_of_bits(pair: tuple[TrainingStep, TrainingStep]) -> None:
    """Another model's step has a graph of its own, which reads the weights and moments reached."""
    steps = pair
    for bits in ("w8a8", "bf16"):
        for seed in range(STEPS):
            losses = [step(batch(seed), 1e-3)[0] for step in steps]
            assert torch.equal(*losses)
        steps = tuple(switched(step, replace(step.config, bits=bits)) for step in steps)
        assert_same(*steps)
    for seed in range(STEPS):
        losses = [step(batch(seed), 1e-3)[0] for step in steps]
        assert torch.equal(*losses)
    assert_same(*steps)


@pytest.mark.parametrize("change", ["storage", "shape"])
def test_captured_anew_where_the_graph_does_not_serve(
    pair: tuple[TrainingStep, TrainingStep], change: str
) -> None:
    rows = ROWS // 2 if change == "shape" else ROWS
    for seed in range(STEPS):
        for step in pair:
            step(batch(seed), 1e-3)
    for step in pair:
        if change == "storage":
            weight = step.model.layers[0].mlp.down_proj.weight
            weight.data = weight.detach() * 2
    for seed in range(STEPS):
        losses = [step(batch(seed, rows), 1e-3)[0] for step in pair]
        assert torch.equal(*losses)
    assert_same(*pair)


def _allocations(step: TrainingStep) -> int:
    """Of device memory, in a step."""
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    step(batch(0), 1e-3)
    return torch.cuda.memory_stats()["allocation.all.allocated"] - before


def test_a_rollback_keeps_the_graph(
    pair: tuple[TrainingStep, TrainingStep], tmp_path: Path
) -> None:
    """The state of a checkpoint is loaded in place, after a step that has made all of it NaN."""
    graphed, eager = pair
    for step in pair:
        folder, watch = tmp_path / str(step is graphed), LossWatch(step.config.train)
        for seed in range(STEPS):
            step(batch(seed), 1e-3)
        save_state(folder, STEPS, step, watch, 0.0, ())
        graph = step._graph._captured if step._graph is not None else None
        with torch.no_grad():
            next(step.model.parameters()).fill_(float("nan"))
        assert step(batch(STEPS), 1e-3)[0].isnan()
        step.optimizer.state.clear()
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        load_state(checkpoint, step, watch)
        for seed in range(STEPS, 2 * STEPS):
            assert step(batch(seed), 1e-3)[0].isfinite()
        assert step._graph is None or step._graph._captured is graph
    assert_same(graphed, eager)
