"""The snippets of docs/convert.md, run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from questtrain import QuantLinear, learned_parameters
from tests.integration.models import LanguageModel, loss_of, rows
from tests.integration.test_lightning import pytestmark as lightning_warnings
from tests.integration.test_peft import pytestmark as peft_warnings
from tests.integration.test_transformers import dataset, llama

PAGE = Path(__file__).parents[2] / "docs" / "convert.md"


def run(section: str, **names: Any) -> dict[str, Any]:
    """Run the Python of a section in the names that its reader has; gives what it defines."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n### {section}\n", 1)[1]
    snippets = re.findall(r"```python\n(.*?)```", re.split(r"\n##", text)[0], re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, f"{PAGE.name}: {section}", "exec"), names)
    return names


def started(model: nn.Module) -> bool:
    learned = learned_parameters(model)
    return bool(learned) and all(scale != 0 for scale in learned)


@pytest.fixture
def my_llama() -> None:
    llama().save_pretrained("my-llama")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("my_llama")
# the Trainer asks for it by default, also where there is no accelerator
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_transformers() -> None:
    found = run("transformers' Trainer", dataset=dataset())
    trained, loaded = found["trainer"].model.eval(), found["model"].eval()
    assert started(loaded)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@lightning_warnings
def test_lightning() -> None:
    loader = DataLoader(rows(20), batch_size=4)
    found = run("Lightning", make_model=LanguageModel, loss_of=loss_of, loader=loader)
    assert started(found["Task"].load_from_checkpoint("checkpoints/epoch=1-step=10.ckpt"))


@pytest.mark.usefixtures("group")
def test_fully_shard() -> None:
    found = run("fully_shard", make_model=LanguageModel, loss_of=loss_of, batch=rows(4))
    assert started(found["model"])
    assert Path("step-1/.metadata").exists()


def test_export() -> None:
    tokens = rows(4)
    found = run("torch.compile and torch.export", make_model=LanguageModel, tokens=tokens)
    assert torch.equal(found["program"](tokens[:, :7]), found["model"](tokens[:, :7]))


@pytest.mark.usefixtures("my_llama")
@peft_warnings
def test_lora() -> None:
    model = run("LoRA (PEFT)")["model"]
    assert any(isinstance(part, QuantLinear) for part in model.modules())
    assert model(rows(2)).logits.isfinite().all()
