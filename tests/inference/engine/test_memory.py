"""Memory for keys and values is compared with what there is before any of it is taken."""

from __future__ import annotations

import pytest
import torch

from questtrain import device
from questtrain.errors import UserError
from questtrain.inference.engine import engine as engine_module
from questtrain.inference.engine import memory
from questtrain.inference.engine.engine import Engine
from questtrain.inference.engine.slots import Slots, slots_bytes


@pytest.fixture
def model(trained):
    return trained("w4a4", True).model


@pytest.mark.parametrize(("count", "capacity"), [(1, 16), (9, 100)])
def test_the_bytes_are_those_of_the_tensors(model, count, capacity):
    slots = Slots(model, count, capacity)
    cache = slots.cache
    tensors = [*cache.keys, *cache.values, cache.cos_SK, cache.sin_SK, slots._logits]
    assert slots_bytes(model, count, capacity) == sum(x.nbytes for x in tensors)


def test_what_does_not_fit_is_refused_with_what_would(trained, model, monkeypatch):
    def taken(*_):
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(engine_module, "Batch", taken)
    there = slots_bytes(model, 16, 64)
    free = -(-there * 10 // 9)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: free)
    with pytest.raises(UserError) as error:
        Engine(trained("w4a4", True), 32, 64)
    needs = f"they need {slots_bytes(model, 32, 64) / 2**30:.3g} GiB and may have"
    assert needs in str(error.value)
    (shorter, fewer) = (
        int(word.partition("=")[2]) for word in str(error.value).split() if "=" in word
    )
    assert fewer == 16
    assert slots_bytes(model, 32, shorter) <= there < slots_bytes(model, 32, shorter + 1)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1000)
    with pytest.raises(UserError, match=r"; a smaller model or another device would fit\.$"):
        Engine(trained("w4a4", True), 1, 64)


def test_what_just_fits_is_served(trained, model, monkeypatch):
    free = -(-slots_bytes(model, 2, 64) * 10 // 9)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: free)
    Engine(trained("w4a4", True), 2, 64)


def test_what_the_process_has_is_not_free(monkeypatch):
    cpu, resident = torch.device("cpu"), device._resident_bytes()
    assert 2**27 < resident <= device.peak_memory_bytes(cpu) + 2**24
    monkeypatch.setattr(device, "host_memory_bytes", lambda: resident + 2**30)
    assert abs(device.free_memory_bytes(cpu) - 2**30) < 2**26
    monkeypatch.setattr(device, "host_memory_bytes", lambda: 1000)
    assert device.free_memory_bytes(cpu) == 0
