"""Learned numbers as state (trap 8): checkpoints, copies, frozen weights, compilation, and several
ranks that must start from the same number."""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from questtrain.quant import QuantLinear, convert, learned_parameters, learned_scalars
from questtrain.store.checkpoint import open_checkpoint, save_checkpoint
from tests.quant.combinations import LEARNED, Combination
from tests.quant.operands import gaussian

# torch 2.13's own tracing of autograd functions raises it
COMPILE_WARNING = "ignore:.*should not be instantiated:DeprecationWarning"
# and its resuming after a graph break this one, which it means to hide
RESUME_WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
WIDTH, OUTPUTS = 64, 8


def layer_of(method: str, seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    return Combination(method, "w4a4").layer(WIDTH, OUTPUTS)


def values_of(module: nn.Module) -> list[Tensor]:
    return [scalar.value.detach().clone() for scalar in learned_scalars(module)]


def saved_and_loaded(layer: nn.Module, into: nn.Module, folder: Path) -> nn.Module:
    """``into`` with the state of ``layer``, by way of a checkpoint on disk."""
    path = save_checkpoint(folder, 7, {"model": layer.state_dict()}, wall_seconds=1.0, keep=2)
    open_checkpoint(path).load_weights(into)
    return into


@pytest.mark.parametrize("method", LEARNED)
def test_a_checkpoint_holds_what_was_learned(method: str, tmp_path: Path) -> None:
    """Bit for bit, and that it is initialised: other data does not start it again."""
    layer, x = layer_of(method), gaussian(5, WIDTH)
    layer(x)
    with torch.no_grad():
        for scalar in learned_scalars(layer):
            scalar.value.mul_(1.1)
    loaded = saved_and_loaded(layer, layer_of(method, seed=1), tmp_path)
    loaded(100 * gaussian(9, WIDTH, seed=2) + 3)
    scalars = zip(learned_scalars(loaded), learned_scalars(layer), strict=True)
    assert all(
        ours.initialised and torch.equal(ours.value, theirs.value) for ours, theirs in scalars
    )
    assert torch.equal(loaded(x), layer(x))
    assert loaded.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype_keeps_what_it_learned(method: str, dtype: torch.dtype) -> None:
    """In fp32 at least, bit for bit: few bits could not follow small updates."""
    layer, x = layer_of(method), gaussian(5, WIDTH)
    layer(x)
    before = values_of(layer)
    layer.to(dtype)
    assert layer.weight.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    for scalar, value in zip(learned_scalars(layer), before, strict=True):
        assert (scalar.value.dtype, scalar.initialised.dtype) == (wide, wide)
        assert torch.equal(scalar.value, value.to(wide))
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert all(scalar.value.grad.isfinite() for scalar in learned_scalars(layer))


@pytest.mark.parametrize("method", LEARNED)
def test_an_uninitialised_layer_stays_so_and_starts_after_loading(
    method: str, tmp_path: Path
) -> None:
    """Also when the layer that it is loaded into had started already."""
    fresh, x = layer_of(method), gaussian(5, WIDTH)
    used = layer_of(method, seed=1)
    used(100 * x)
    loaded = saved_and_loaded(fresh, used, tmp_path)
    assert not any(scalar.initialised for scalar in learned_scalars(loaded))
    assert torch.equal(loaded(x), fresh(x))
    assert all(scalar.initialised for scalar in learned_scalars(loaded))
    for ours, theirs in zip(values_of(loaded), values_of(fresh), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", LEARNED)
def test_state_is_the_weight_and_what_was_learned(method: str, tmp_path: Path) -> None:
    """Besides nn.Linear's own keys a number and a flag each; safetensors hold them all."""
    layer = layer_of(method)
    state = layer.state_dict()
    learned = {key for key in state if key != "weight"}
    assert len(learned) == 2 * len(learned_scalars(layer))
    save_file(state, tmp_path / "layer.safetensors")
    loaded = load_file(tmp_path / "layer.safetensors")
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    incomplete = layer.load_state_dict({"weight": state["weight"]}, strict=False)
    assert set(incomplete.missing_keys) == learned


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("started", [True, False])
def test_a_checkpoint_of_version_0_1_loads(method: str, started: bool) -> None:
    """There the flag was extra state, a bool."""
    layer, x = layer_of(method), gaussian(5, WIDTH)
    if started:
        layer(x)
    old = {
        key.replace("initialised", "_extra_state"): value.bool() if "init" in key else value
        for key, value in layer.state_dict().items()
    }
    loaded = layer_of(method, seed=1)
    loaded(100 * x)
    loaded.load_state_dict(old)
    assert all(bool(scalar.initialised) == started for scalar in learned_scalars(loaded))
    assert torch.equal(loaded(x), layer(x))
    assert set(old) == {key.replace("initialised", "_extra_state") for key in layer.state_dict()}


@pytest.mark.parametrize("kind", ["swa", "swa with buffers", "ema", "ema with buffers"])
@pytest.mark.parametrize("early", [True, False])
def test_an_average_starts_where_the_model_did(kind: str, early: bool) -> None:
    """Made before the first forward or after it, an averaged model keeps what was learned when it
    sees other data."""
    layer, x = layer_of("lsq-plus"), gaussian(5, WIDTH)
    average = get_ema_multi_avg_fn(0.9) if "ema" in kind else None
    if not early:
        layer(x)
    averaged = AveragedModel(layer, multi_avg_fn=average, use_buffers="buffers" in kind)
    layer(x)
    for _ in range(3):
        averaged.update_parameters(layer)
    averaged(100 * x)
    assert torch.allclose(averaged(x), layer(x), rtol=1e-6)


def test_a_model_made_without_memory_starts_anew() -> None:
    """On the meta device, then `to_empty` and `reset_parameters`, as FSDP's users do."""
    with torch.device("meta"):
        layer = layer_of("lsq")
    layer.to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(not scalar.initialised for scalar in learned_scalars(layer))
    layer(gaussian(5, WIDTH))
    assert all(scalar.initialised and scalar.value > 0 for scalar in learned_scalars(layer))


def test_an_optimizer_made_before_is_given_what_is_learned() -> None:
    """`learned_parameters`, as a group of its own."""
    model = nn.Sequential(nn.Linear(WIDTH, OUTPUTS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, "w4a4", "lsq")
    optimizer.add_param_group({"params": learned_parameters(model), "lr": 0.01})
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == set(model.parameters())


@pytest.mark.parametrize("method", LEARNED)
def test_a_copy_learns_on_its_own(method: str) -> None:
    """A deep copy has the same numbers and flags, and shares none of them."""
    layer, x = layer_of(method), gaussian(5, WIDTH)
    untouched = copy.deepcopy(layer)
    layer(x)
    assert not any(scalar.initialised for scalar in learned_scalars(untouched))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    before = values_of(layer)
    with torch.no_grad():
        for scalar in learned_scalars(twin):
            scalar.value.mul_(2)
    twin(100 * x)
    for value, kept in zip(values_of(layer), before, strict=True):
        assert torch.equal(value, kept)


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("rotation", ["none", "hadamard", "hadamard-back"])
def test_freezing_keeps_the_outputs(method: str, rotation: str) -> None:
    """The weight on its learned grid is the weight that was multiplied with, before the first
    forward as after it."""
    x = gaussian(5, WIDTH)
    combination = Combination(method, "w4a4", rotations=(rotation, rotation))
    for started in (True, False):
        torch.manual_seed(0)
        layer = combination.layer(WIDTH, OUTPUTS)
        reference = copy.deepcopy(layer)
        if started:
            layer(x)
        layer.freeze_weight()
        assert torch.equal(layer(x), reference(x))
        assert len(learned_scalars(layer)) == (2 if method == "lsq-plus" else 1)


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convert_makes_layers_that_learn(method: str, dtype: torch.dtype) -> None:
    """Each converted linear has its own numbers, in fp32; an optimizer moves them all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, OUTPUTS)).to(dtype)
    convert(model, "w3a3", method, skip=())
    scalars = learned_scalars(model)
    assert len(scalars) == 2 * (3 if method == "lsq-plus" else 2)
    x = 2 * gaussian(40, WIDTH).to(dtype)
    x[0, 0] = 100.0
    with torch.no_grad():
        model(x)
    start = values_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(x).float().square().mean().backward()
    optimizer.step()
    for scalar, value in zip(scalars, start, strict=True):
        assert scalar.value.dtype == torch.float32
        assert scalar.value.isfinite().all()
        assert scalar.value.grad is not None
        # PACT's number rests where no value lies outside the grid
        assert torch.equal(scalar.value, value) == (not scalar.value.grad.any())


def gradients_of(layer: nn.Module, run: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, grad_x and the gradient of each parameter of ``layer``, which ``run`` calls."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return [y.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]


@pytest.mark.filterwarnings(COMPILE_WARNING)
@pytest.mark.parametrize("method", LEARNED)
def test_compiled_gradients_equal_eager_ones(method: str) -> None:
    """Once started, forward and backward are one graph; learned numbers get the same gradients.
    Loaded as started, too."""
    started, x = layer_of(method), gaussian(5, WIDTH)
    started(x)
    layer = layer_of(method)
    layer.load_state_dict(started.state_dict())
    eager = gradients_of(started, started, x)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(gradients_of(layer, compiled, x), eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings(COMPILE_WARNING, RESUME_WARNING)
def test_a_compiled_layer_starts_as_an_eager_one() -> None:
    """Starting is a graph break of the first call and leaves the same numbers."""
    layer, x = layer_of("lsq-plus"), gaussian(5, WIDTH)
    reference = copy.deepcopy(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    for operand in (x, 3 * x):
        torch.testing.assert_close(compiled(operand), reference(operand), rtol=1e-6, atol=1e-6)
    assert all(scalar.initialised for scalar in learned_scalars(layer))
    for ours, expected in zip(values_of(layer), values_of(reference), strict=True):
        assert torch.equal(ours, expected)


RANKS = 2
COUNTS = {"uneven": (5, 3), "one rank has none": (5, 0)}


def _rows_of(rank: int, count: int) -> Tensor:
    """What a rank sees: of another spread and another mean than its neighbour's."""
    return gaussian(count, WIDTH, seed=rank) * (1 + 3 * rank) + rank


def _start_on_a_rank(rank: int, folder: str) -> None:
    """Starts every method on this rank's rows and writes down the learned numbers."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), RANKS, rank)
    learned = {}
    for case, counts in COUNTS.items():
        for method in LEARNED:
            layer = layer_of(method)
            layer(_rows_of(rank, counts[rank]))
            for index, value in enumerate(values_of(layer)):
                learned[f"{case}/{method}/{index}"] = value
    _start_in_shards(rank)
    save_file(learned, f"{folder}/{rank}.safetensors")
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


def _start_in_shards(rank: int) -> None:
    """A number of one value has its shard on one rank, and an empty one on the other; the start
    value is in the next forward on both."""
    x = _rows_of(rank, 4)
    for method in LEARNED:
        plain, sharded = layer_of(method), layer_of(method)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (RANKS,)))
        with torch.no_grad():
            expected = plain(x)
            for _ in range(3):
                torch.testing.assert_close(sharded(x), expected)


def test_ranks_start_from_the_same_number(tmp_path: Path) -> None:
    """Two ranks with different rows, or none, start bit for bit alike: at the number of all rows
    together, weighted by how many there are. Sharded, they keep it."""
    torch.multiprocessing.spawn(_start_on_a_rank, (str(tmp_path),), nprocs=RANKS)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(RANKS))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for case, counts in COUNTS.items():
        together = torch.cat([_rows_of(rank, counts[rank]) for rank in range(RANKS)])
        for method in LEARNED:
            layer = layer_of(method)
            layer(together)
            for index, value in enumerate(values_of(layer)):
                # fp32 sums of a few hundred values in another order
                torch.testing.assert_close(
                    first[f"{case}/{method}/{index}"], value, rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize("method", LEARNED)
def test_converted_layers_learn_in_fp32_or_wider(method: str) -> None:
    """`convert` gives learned numbers the precision that `QuantLinear` of that dtype has."""
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        linear = convert(torch.nn.Linear(16, 4, bias=False, dtype=dtype), method=method)
        learned = [p for name, p in linear.named_parameters() if name.endswith(".value")]
        assert learned
        assert all(parameter.dtype == expected for parameter in learned)


@pytest.mark.parametrize("method", LEARNED)
def test_a_stored_nan_stays_visible(method: str) -> None:
    """No code says NaN, so its row's scale does; the other rows are stored as they are."""
    layer = layer_of(method)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    clean = layer.activation_quantizer.quantize(x)
    x[1, 2] = torch.nan
    stored = layer.activation_quantizer.quantize(x)
    values = layer.activation_quantizer.dequantize(stored)
    assert values[1].isnan().all()
    assert torch.equal(values[[0, 2]], layer.activation_quantizer.dequantize(clean)[[0, 2]])
