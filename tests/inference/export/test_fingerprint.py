"""What a server calls the system of an answer: equal for a run and its packed export, whose answers
are equal in every bit, and another for whatever makes other answers possible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from questtrain.cli.main import main
from questtrain.inference.engine.fingerprint import weights_sha256
from questtrain.inference.engine.loading import ServedRun
from questtrain.inference.engine.messages import Served
from questtrain.inference.engine.requests import Request, Sampling
from tests.inference.export.conftest import Trained


def export(run: Path, folder: Path, *words: str) -> Path:
    words = (f"run={run}", f"output={folder}", "format=packed", "verify=false", *words)
    assert main(["export", *words]) == 0
    return folder


def served(folder: Path, packed: bool, slots: int = 2) -> tuple[Served, list[object]]:
    """What an engine says that it serves, and its answer to one request."""
    engine, told = ServedRun(str(folder), "cpu", None, packed, slots, None)()
    engine.add(Request(0, (0, 5, 7), Sampling(12, temperature=1.0, seed=3, logprobs=2)))
    deltas = []
    while not engine.is_idle:
        deltas += engine.step()
    return told, deltas


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["quest", "lsq-plus"])
def test_a_run_and_its_export_are_one_system(
    trained: Trained, tmp_path: Path, method: str, packed: bool
) -> None:
    run = trained("w4a4", method)
    of_run, answer = served(run, packed)
    of_export, same = served(export(run, tmp_path / "export"), packed)
    assert answer == same
    for hashes in ("weights_sha256", "setup_sha256", "step"):
        assert getattr(of_run, hashes) == getattr(of_export, hashes)


def test_what_may_change_bits_changes_the_fingerprint(trained: Trained, tmp_path: Path) -> None:
    """Rounded weights, other products, more slots."""
    run = trained("w4a4", "quest")
    packed, values = (served(run, way)[0] for way in (True, False))
    rounded = served(export(run, tmp_path / "bf16", "dtype=bf16"), True)[0]
    wider = served(run, True, slots=4)[0]
    assert len({each.weights_sha256 for each in (packed, values, rounded)}) == 3
    assert packed.setup_sha256 == values.setup_sha256 != wider.setup_sha256
    assert wider.weights_sha256 == packed.weights_sha256


def test_a_hash_is_of_names_types_shapes_and_bytes() -> None:
    def hashed(tensor: torch.Tensor, name: str = "a") -> str:
        module = torch.nn.Module()
        module.register_buffer(name, tensor)
        return weights_sha256(module)

    same = torch.arange(8, dtype=torch.int32)
    others = [same.view(torch.float32), same.reshape(2, 4), same + 1, torch.tensor(1.0)]
    others += [same.view(torch.int16).view(torch.bfloat16), torch.zeros(0)]
    assert hashed(same) == hashed(same.clone())
    assert hashed(same.reshape(2, 4).t()) == hashed(same.reshape(2, 4).t().contiguous())
    assert len({hashed(same), hashed(same, "b"), *map(hashed, others)}) == 8
