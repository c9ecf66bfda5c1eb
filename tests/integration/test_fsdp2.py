"""A loop as torchtitan's: a model made on the meta device, sharded over two processes by
``fully_shard``, trained, saved and loaded by torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import questtrain
from tests.integration.models import LanguageModel, loss_of, rows

STEPS, BATCH, RANKS = 3, 8, 2
METHODS = ["quest", "lsq", "lsq-plus"]


def converted(method: str) -> nn.Module:
    torch.manual_seed(0)
    return questtrain.convert(LanguageModel(), "w4a4", method)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def sharded(method: str, start: dict[str, Tensor]) -> nn.Module:
    """On the meta device, sharded, then with rank 0's values."""
    with torch.device("meta"):
        model = questtrain.convert(LanguageModel(), "w4a4", method)
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, start if dist.get_rank() == 0 else {}, options=options)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Tensor) -> list[float]:
    """The mean loss of all ranks at each step; one process takes the ranks' rows one by one."""
    losses = []
    group = dist.is_initialized()
    for batch in batches:
        parts = batch.chunk(RANKS)
        mine = [parts[dist.get_rank()]] if group else parts
        total = torch.zeros(())
        for part in mine:
            loss = loss_of(model, part)
            (loss / len(mine)).backward()
            total += loss.detach() / RANKS
        if group:
            dist.all_reduce(total)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses


def batches() -> tuple[Tensor, Tensor]:
    """Of the steps before and after the checkpoint: ``[STEPS, BATCH, T]`` each."""
    first, second = rows(2 * STEPS * BATCH).view(2, STEPS, BATCH, -1)
    return first, second


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    for method in METHODS:
        found = train_save_and_resume(method, f"{folder}/{method}")
        if rank == 0:
            torch.save(found, f"{folder}/{method}.pt")
    dist.destroy_process_group()


def train_save_and_resume(method: str, folder: str) -> dict[str, object]:
    """What each of the two trainings found, and the full state after the first three steps."""
    first, second = batches()
    model = sharded(method, converted(method).state_dict())
    optimizer = optimizer_of(model)
    losses = train(model, optimizer, first)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(state, checkpoint_id=folder)
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    losses += train(model, optimizer, second)
    fresh = sharded(method, converted(method).state_dict())
    optimizer = optimizer_of(fresh)
    state = dict(zip(("model", "optimizer"), get_state_dict(fresh, optimizer), strict=True))
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        fresh,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    return {"losses": losses, "resumed": train(fresh, optimizer, second), "state": full}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp2")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one(found: Path, method: str) -> None:
    """The losses of three steps, learned scales included; a resumed training is the unbroken one
    bit for bit, and the full state is that of an ordinary model."""
    two = torch.load(found / f"{method}.pt")
    model = converted(method)
    with torch.no_grad():
        model(batches()[0][0][:, :-1])  # learned scales start from what all ranks see
    one = train(model, optimizer_of(model), batches()[0])
    # codes at a border flip where a sum had another order; one such is about 1e-4 of the loss
    assert two["losses"][:STEPS] == pytest.approx(one, rel=2e-4)
    assert two["resumed"] == two["losses"][STEPS:]
    assert len(set(two["losses"])) == 2 * STEPS
    ordinary = converted(method)
    ordinary.load_state_dict(two["state"])
    assert all(scale != 0 for scale in questtrain.learned_parameters(ordinary))
    loss = loss_of(ordinary, batches()[1][0]).item()
    assert loss == pytest.approx(two["losses"][STEPS], rel=2e-4)
