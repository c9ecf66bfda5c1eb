"""LoRA: an adapter in full precision beside quantized layers; quantized itself it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import questtrain
from questtrain import QuantLinear
from questtrain.errors import UserError
from tests.integration.models import rows
from tests.integration.test_transformers import llama

pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 renamed it, peft 0.21 still asks for it
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
ADAPTED = "model.layers.1.self_attn.q_proj"


def config(rank: int = 8) -> LoraConfig:
    """With random matrices, so that the adapter changes what the model computes."""
    return LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def trained(model: nn.Module) -> set[str]:
    """Of every trained parameter with a gradient the last part of its name but one."""
    model(rows(2)).logits.square().mean().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
    return {name.split(".")[-3] for name in with_gradient}


@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("skip", [None, ["lm_head"]])
def test_an_adapter_is_not_quantized(rank: int, skip: list[str] | None) -> None:
    """Whether its rank suits the rotation or not; the message says which skip works."""
    model = get_peft_model(llama(), config(rank))
    advised = r"lora_A.*lora_B.*adapter \(LoRA\).*skip=\['lm_head', '\*lora_\*'\]"
    with pytest.raises(UserError, match=advised):
        questtrain.convert(model, skip=skip)
    assert not any(isinstance(part, QuantLinear) for part in model.modules())
    questtrain.convert(model, skip=["lm_head", "*lora_*"])
    assert isinstance(model.get_submodule(f"base_model.model.{ADAPTED}.base_layer"), QuantLinear)


@pytest.mark.parametrize("method", ["quest", "lsq"])
def test_both_orders_are_the_same(method: str) -> None:
    """`convert` then PEFT, and PEFT then `convert`: only the adapter is trained, also where
    scales are learned, for an adapter's file would not hold them."""
    tokens = rows(2)
    torch.manual_seed(1)
    first = get_peft_model(questtrain.convert(llama(), "w4a4", method), config())
    second = get_peft_model(llama(), config())
    second.load_state_dict(first.state_dict(), strict=False)
    questtrain.convert(second, "w4a4", method, skip=["lm_head", "*lora_*"])
    assert torch.equal(first(tokens).logits, second(tokens).logits)
    assert trained(first) == trained(second) == {"lora_A", "lora_B"}


def test_an_adapter_is_saved_and_loaded(tmp_path: Path) -> None:
    """Beside the base model, which is converted again."""
    tokens = rows(2)
    model = get_peft_model(questtrain.convert(llama()), config()).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(questtrain.convert(llama()), tmp_path).eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_an_adapter_beside_packed_weights() -> None:
    """The base becomes codes, the adapter stays."""
    tokens = rows(2)
    model = get_peft_model(questtrain.convert(llama(), "w4a16"), config()).eval()
    packed = questtrain.pack(model)
    torch.testing.assert_close(packed(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, QuantLinear) for part in packed.modules())


def test_a_merged_adapter_is_quantized_with_its_weight() -> None:
    """``Q(W + BA)``: another function than ``Q(W) + BA``, but one of the same format."""
    model = get_peft_model(questtrain.convert(llama()), config())
    adapted = model.get_submodule(f"base_model.model.{ADAPTED}")
    expected = adapted.base_layer.weight + adapted.get_delta_weight("default")
    layer = model.merge_and_unload().get_submodule(ADAPTED)
    assert isinstance(layer, QuantLinear)
    torch.testing.assert_close(layer.weight, expected)
