"""Hugging Face's Trainer: training goes on from its checkpoints as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import load_checkpoint_in_model
from safetensors.torch import load_model
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import questtrain
from tests.integration.models import LENGTH, VOCABULARY, WIDTH, rows


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=tied,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=LENGTH)
    )


def dataset() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in rows(80)]


def trained(
    model: PreTrainedModel, folder: Path, resume: bool = False, **settings: Any
) -> list[float]:
    """Ten steps and a checkpoint after the fifth, or on from there; gives the loss of each."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=10,
        save_steps=5,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        learning_rate=1e-2,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=dataset())
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5") if resume else None)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("method", "bf16", "tied"),
    [
        ("quest", False, False),
        ("quest", True, True),
        ("lsq", True, False),
        ("lsq-plus", False, True),
    ],
)
def test_a_resumed_training_is_the_unbroken_one(
    method: str, bf16: bool, tied: bool, tmp_path: Path
) -> None:
    """Bit for bit: losses, weights and learned scales, with activation checkpointing, accumulated
    gradients, accelerate's mixed precision and tied embeddings."""
    unbroken = questtrain.convert(llama(tied), "w4a4", method)
    expected = trained(unbroken, tmp_path, bf16=bf16)
    resumed = questtrain.convert(llama(tied), "w4a4", method)
    assert trained(resumed, tmp_path, resume=True, bf16=bf16) == expected
    assert len(set(expected)) == 10
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(scale != 0 for scale in questtrain.learned_parameters(resumed))


@pytest.mark.parametrize("model", [llama, lambda: llama(tied=True), gpt2])
@pytest.mark.parametrize("method", ["quest", "lsq"])
def test_a_saved_model_is_loaded(model: Any, method: str, tmp_path: Path) -> None:
    """Converted again, then its file read: `from_pretrained` knows no learned scales."""
    tokens = rows(2)
    first = questtrain.convert(model().eval(), "w4a4", method)
    expected = first(tokens).logits
    first.save_pretrained(tmp_path)
    second = questtrain.convert(type(first).from_pretrained(tmp_path), "w4a4", method)
    load_model(second, tmp_path / "model.safetensors")
    assert torch.equal(second(tokens).logits, expected)


def test_a_model_in_several_files_is_loaded(tmp_path: Path) -> None:
    tokens = rows(2)
    first = questtrain.convert(llama().eval(), "w4a4", "lsq")
    expected = first(tokens).logits
    first.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    second = questtrain.convert(llama().eval(), "w4a4", "lsq")
    load_checkpoint_in_model(second, tmp_path, strict=True)
    assert torch.equal(second(tokens).logits, expected)


def test_generate() -> None:
    """With a cache and without: the same tokens, as of every model."""
    model = questtrain.convert(llama().eval(), "w4a16")
    prompt = rows(2)[:, :4]
    cached, whole = (
        model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)
