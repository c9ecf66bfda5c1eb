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
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from questtrain.errors import UserError
from questtrain.quant import QuantLinear, convert

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model_of(bits: str = "w4a4", method: str = "quest") -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32, bias=False))
    return convert(layers, bits, method)


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


@pytest.mark.parametrize("method", ["quest", "lsq", "lsq-plus", "pact"])
def test_ddp(method: str) -> None:
    """Learned scales too, which start after wrapping."""
    expected = losses(model_of(method=method))
    assert losses(DistributedDataParallel(model_of(method=method))) == expected
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


LEARNED = ["lsq", "lsq-plus", "pact"]


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("reshard", [True, False])
def test_learned_scales_start_in_their_shards(method: str, reshard: bool) -> None:
    """The start value, written during a forward when FSDP has gathered the parameter, is there in
    the next one, and trained as in one process."""
    expected = losses(model_of(method=method))
    model, x = model_of(method=method), torch.randn(8, 64, generator=torch.Generator())
    mesh, keys = init_device_mesh("cpu", (1,)), model.state_dict().keys()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    assert model.state_dict().keys() == keys
    assert losses(model) == pytest.approx(expected, rel=1e-4)
    assert model.state_dict().keys() == keys
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x))


@pytest.mark.filterwarnings("ignore:FSDP:UserWarning", "ignore:.*deprecated:FutureWarning")
def test_what_would_lose_the_start_is_refused() -> None:
    """Views and replicas in the place of parameters: a model that has started before works."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    model = model_of(method="lsq")
    copied = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(UserError, match="call the model once on some data before"):
        torch.func.functional_call(model, copied, (x,))
    flat = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    with pytest.raises(UserError, match="use fully_shard"):
        flat(x)
    started = model_of(method="lsq")
    expected = started(x)
    flat = FullyShardedDataParallel(started, device_id=torch.device("cpu"))
    torch.testing.assert_close(flat(x), expected)
    with pytest.raises(UserError, match="before fully_shard"):
        convert(FullyShardedDataParallel(nn.Linear(64, 64), device_id=torch.device("cpu")))


@pytest.mark.parametrize("method", ["quest", "lsq"])
def test_a_sharded_model_is_not_converted(method: str) -> None:
    """FSDP keeps the old layers' parameters: it has to come after."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match="before fully_shard"):
        convert(model, method=method)
    assert type(model[0]) is nn.Linear


def test_under_ddp_only_what_has_no_new_parameters() -> None:
    """Its gradients are those of the parameters it was given; QuEST adds none."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(UserError, match="DistributedDataParallel would not know"):
        convert(model, method="lsq")
    convert(model)
    assert type(model.module[0]) is QuantLinear
