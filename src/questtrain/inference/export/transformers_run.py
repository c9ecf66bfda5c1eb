"""A folder in transformers' own classes: what formats that it reads are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def causal_lm_logits(folder: Path, prompts: Sequence[Tensor], **how: Any) -> Iterator[Tensor]:
    """Logits fp32 ``[T, V]`` on the CPU of every prompt, int64 ``[T]``. ``how`` goes to
    from_pretrained: a device, a file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **how)
    for prompt in prompts:
        tokens = prompt.unsqueeze(0).to(model.device)
        yield model(tokens, use_cache=False).logits[0].float().cpu()
