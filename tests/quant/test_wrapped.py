"""Under other wrappers: DDP, FSDP and activation checkpointing see the weights of each step.

One process is enough: DDP's hooks and FSDP's gathered parameters are those of many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from questtrain.quant import convert

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model_of(bits: str = "w4a4") -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32, bias=False))
    return convert(layers, bits)


def losses(model: nn.Module, forward: Callable[[Tensor], Tensor] | None = None) -> list[float]:
    """Of each step, two micro-batches a step, and after the last one without gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    forward = forward or model
    found = []
    for _ in range(STEPS):
        for _ in range(2):
            x = torch.randn(16, 64, generator=generator)
            loss = (forward(x) - 1).square().mean()
            loss.backward()
            found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found.append(forward(torch.randn(16, 64, generator=generator)).square().mean().item())
    return found


def test_ddp() -> None:
    expected = losses(model_of())
    assert losses(DistributedDataParallel(model_of())) == expected
    assert len(set(expected)) == len(expected)


def test_fsdp() -> None:
    expected = losses(model_of())
    model = model_of()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert losses(model) == pytest.approx(expected, rel=1e-5)


def test_fsdp_sees_loaded_weights() -> None:
    """Even without gradients before and after, when nothing counts a step."""
    model, other = model_of(), model_of()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    sharded = copy.deepcopy(model)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    x = torch.randn(8, 64)
    with torch.no_grad():
        torch.testing.assert_close(sharded(x), model(x))
        sharded.reshard()
        for mine, theirs in zip(sharded.parameters(), other.parameters(), strict=True):
            mine.to_local().copy_(theirs)
        torch.testing.assert_close(sharded(x), other(x))


def test_checkpointing() -> None:
    model = model_of()

    def forward(x: Tensor) -> Tensor:
        y: Tensor = checkpoint(model, x.requires_grad_(), use_reentrant=False)
        return y

    assert losses(model, forward) == losses(model_of())
