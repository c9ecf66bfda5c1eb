"""A folder in transformers' own classes: what formats that it reads are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from questtrain.config import ModelConfig


def causal_lm_logits(folder: Path, prompts: Sequence[Tensor], **how: Any) -> Iterator[Tensor]:
    """Logits fp32 ``[T, V]`` on the CPU of every prompt, int64 ``[T]``. ``how`` goes to
    from_pretrained: a device, a file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **how)
    for prompt in prompts:
        tokens = prompt.unsqueeze(0).to(model.device)
        yield model(tokens, use_cache=False).logits[0].float().cpu()


def tokenizer_ids(folder: Path, model: ModelConfig, texts: Sequence[str]) -> Iterator[list[int]]:
    """What the folder's tokenizer makes of every text, BOS included."""
    import transformers

    tokenizer = getattr(transformers, tokenizer_class(model)).from_pretrained(folder)
    for text in texts:
        ids: list[int] = tokenizer(text)["input_ids"]
        yield ids


def tokenizer_class(model: ModelConfig) -> str:
    """The class of transformers that reads tokenizer.json as it is: for a Qwen2, AutoTokenizer
    takes another one, which splits words as Qwen's do, whatever the file says."""
    return "PreTrainedTokenizerFast" if model.qkv_bias else "AutoTokenizer"


def tokenizer_class_limits(model: ModelConfig) -> list[str]:
    """What AutoTokenizer does to the model's tokenizer, in sentences."""
    kind = tokenizer_class(model)
    if kind == "AutoTokenizer":
        return []
    return [
        "AutoTokenizer splits words as Qwen's tokenizers do, for every model with biases of"
        f" Q, K and V; {kind} reads the tokenizer that is there."
    ]
