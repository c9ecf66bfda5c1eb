"""``train.reproducible``: the same bits by any number of processes, killed and started again."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from questtrain.cli.main import main
from questtrain.config.reproducible import PROCESSES, SHARDS
from questtrain.store.files import sha256_of
from questtrain.train.determinism import deterministic_algorithms
from questtrain.train.gradient_tree import TreeSum
from questtrain.train.parallel import World
from tests.train.test_parallel import ends, start, wait_until_logged
from tests.training_data import TINY, rows

STEPS = 16
SETTINGS = (
    *TINY,
    "batch_size=16",
    "micro_batch_size=1",
    f"max_steps={STEPS}",
    "log_every=1",
    "eval_every=4",
    "checkpoint_every=3",
    "train.reproducible=true",
)


def bits_of(run: Path) -> tuple:
    """Of the weights and AdamW's moments after the last step, and all numbers on the way."""
    last = run / "checkpoints" / f"step_{STEPS:08d}"
    files = [sha256_of(last / f"{part}.safetensors") for part in ("model", "optimizer")]
    return (*files, *(rows(run, key) for key in ("train_loss", "grad_norm", "val_loss")))


def finish(words: Sequence[str], size: int) -> None:
    codes, _, errors = ends(start([*words], size=size))
    assert codes == [0] * size, errors


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The run of one process, without a stop."""
    runs = tmp_path_factory.mktemp("alone")
    assert main(["train", *SETTINGS, *corpus, f"runs_dir={runs}", "name=run"]) == 0
    return runs / "run"


def test_killed_shrunk_and_grown_it_is_the_run_of_one_process(alone, corpus, tmp_path) -> None:
    """Four processes of which one is killed, then two that are stopped, then four to the end."""
    run, words = tmp_path / "run", [*SETTINGS, *corpus, f"runs_dir={tmp_path}", "name=run"]
    four = start(words, size=4)
    wait_until_logged(run, 5, four)
    four[2].kill()
    assert all(ends(four)[0])
    two = start(words, size=2)
    wait_until_logged(run, 9, two)
    two[1].send_signal(signal.SIGTERM)
    codes, _, errors = ends(two)
    assert codes == [128 + signal.SIGTERM] * 2, errors
    finish(words, 4)
    assert bits_of(run) == bits_of(alone)


@pytest.mark.parametrize("changes", [["method=lsq-plus"], ["bits=bf16", "micro_batch_size=2"]])
def test_learned_scales_and_plain_weights(changes, corpus, tmp_path) -> None:
    words = [*SETTINGS, *changes, *corpus, f"runs_dir={tmp_path}"]
    assert main(["train", *words, "name=one"]) == 0
    finish([*words, "name=two"], 2)
    assert bits_of(tmp_path / "two") == bits_of(tmp_path / "one")


@pytest.mark.slow
def test_eight_processes(alone, corpus, tmp_path) -> None:
    finish([*SETTINGS, *corpus, f"runs_dir={tmp_path}", "name=run"], 8)
    assert bits_of(tmp_path / "run") == bits_of(alone)


def test_it_learns_as_any_run(alone, corpus, tmp_path) -> None:
    """The numbers differ by the order of sums, and by nothing else."""
    words = [*SETTINGS, *corpus, f"runs_dir={tmp_path}", "name=run", "train.reproducible=false"]
    assert main(["train", *words]) == 0
    ours, theirs = (dict(rows(run, "train_loss")) for run in (alone, tmp_path / "run"))
    assert [ours[step] for step in (1, 2, 3)] == pytest.approx(
        [theirs[step] for step in (1, 2, 3)], rel=1e-4
    )
    assert ours != theirs


def test_a_tree_of_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1000, generator=generator) * 10.0**n for n in range(8)]
    a, b, c, d, e, f, g, h = (part.clone() for part in parts)
    expected = ((a + b) + (c + d)) + ((e + f) + (g + h))
    tree = TreeSum()
    for part in parts:
        tree.add([part.clone(), -part])
    assert torch.equal(tree.total[0], expected)
    assert torch.equal(tree.total[1], -expected)
    assert not torch.equal(expected, sum(part.clone() for part in parts))


def test_one_rank_has_the_sum_already() -> None:
    tensor = torch.ones(3)
    World().tree_all_reduce([tensor])
    assert torch.equal(tensor, torch.ones(3))


def test_deterministic_algorithms_end_with_the_block() -> None:
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["batch_size=12"],
            f"into {SHARDS} shards, and batch_size=12 does not divide",
        ),
        (["gpus=3"], "takes 1, 2, 4 or 8 processes, not gpus=3; the nearest is 2"),
        (["gpus=16"], "takes 1, 2, 4 or 8 processes, not gpus=16; the nearest is 8"),
    ],
)
def test_what_has_no_shards_is_refused(words, message, corpus, tmp_path, capsys) -> None:
    asked = [*SETTINGS, *corpus, f"runs_dir={tmp_path}", "name=run", *words]
    assert main(["train", *asked]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_three_processes_are_refused(corpus, tmp_path) -> None:
    """As torchrun or srun start them."""
    words = [*SETTINGS, "batch_size=24", *corpus, f"runs_dir={tmp_path}", "name=run"]
    codes, _, errors = ends(start(words, size=3))
    assert codes == [2] * 3
    assert "takes 1, 2, 4 or 8 processes, not 3" in errors[0]


def test_what_decides_bits_stays_as_it_was(alone, corpus, capsys) -> None:
    words = [*SETTINGS, *corpus, f"runs_dir={alone.parent}", "name=run"]
    assert main(["train", *words, "micro_batch_size=2"]) == 2
    assert "micro_batch_size: 1 in the folder, 2 asked for" in capsys.readouterr().err
    assert main(["train", *words, "train.keep_checkpoints=5"]) == 0


def test_every_number_of_processes_has_whole_shards() -> None:
    assert all(SHARDS % count == 0 for count in PROCESSES)
