"""When a `GraphedCall` runs its work, captures and replays it; on a GPU test_step_graph.py does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from questtrain import cuda_graph
from questtrain.cuda_graph import GraphedCall


class Replay:
    """Stands for a graph: it runs the work again and writes what comes out into the same memory."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self.work, self.result = work, torch.empty_like(work())

    def replay(self) -> None:
        self.result.copy_(self.work())


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """What is captured, on a CPU that passes for a GPU."""
    found: list[Replay] = []

    def capture(work: Callable[[], Tensor], pool: object) -> tuple[Replay, Tensor]:
        found.append(Replay(work))
        return found[-1], found[-1].result

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    return found


def test_a_cpu_captures_nothing() -> None:
    call = GraphedCall(lambda x: 2 * x, torch.empty(0), warm_calls=0)
    for value in range(3):
        assert torch.equal(call(torch.full((2,), value)), torch.full((2,), 2.0 * value))
    assert not call.is_captured


def test_captured_after_warm_calls_and_anew_where_it_does_not_serve(
    captures: list[Replay],
) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    call = GraphedCall(lambda x: x * weight.detach(), torch.empty(0), 2, reads=[weight])

    def graphs_after(calls: int, rows: int) -> int:
        for value in range(calls):
            x = torch.full((rows, 2), float(value))
            assert torch.equal(call(x), x * weight)
        return len(captures)

    assert [graphs_after(calls, rows=3) for calls in (2, 1, 5)] == [0, 1, 1]
    assert [graphs_after(calls, rows=4) for calls in (2, 1, 5)] == [1, 2, 2]
    weight.data = torch.full((2,), 3.0)
    assert [graphs_after(calls, rows=4) for calls in (2, 1)] == [2, 3]
    call.forget()
    assert not call.is_captured
    assert graphs_after(1, rows=4) == 4
