"""The yardstick of training: a BF16 Llama and its optimizer step, as anybody would write them.

It owes nothing to our own model: fused Q/K/V and gate/up products, PyTorch's attention, norms and
cross entropy under bf16 autocast, all in one compiled graph, fused AdamW. Its residual stream is
bf16, the faster choice; norms are computed in fp32. On a CPU everything is fp32, as ours is.

Shape suffixes: B batch, T tokens, D hidden size, H heads, K head width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import ModelConfig, TrainConfig, intermediate_size


class PlainBlock(nn.Module):
    """One transformer block of four products."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, width = config.hidden_size, intermediate_size(config)
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(size, eps=config.norm_eps)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.mlp_norm = nn.RMSNorm(size, eps=config.norm_eps)
        self.gate_up = nn.Linear(size, 2 * width, bias=False)
        self.down = nn.Linear(width, size, bias=False)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x_BTD.float())).chunk(3, dim=-1)
        )
        y_BHTK = F.scaled_dot_product_attention(
            _turned(q_BHTK, cos_TK, sin_TK), _turned(k_BHTK, cos_TK, sin_TK), v_BHTK, is_causal=True
        )
        x_BTD = x_BTD + self.out(y_BHTK.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x_BTD.float())).chunk(2, dim=-1)
        out: Tensor = x_BTD + self.down(F.silu(gate) * up)
        return out


class PlainLlama(nn.Module):
    """Tokens and targets ``[B, T]`` → mean cross entropy; ``dtype`` is the residual stream's."""

    def __init__(self, config: ModelConfig, sequence_length: int, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.dtype = dtype
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        half = config.hidden_size // config.num_heads // 2
        frequencies = config.rope_theta ** (-torch.arange(half) / half)
        angles = torch.outer(torch.arange(sequence_length), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.init_std)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_BTD = self.embed(tokens_BT).to(self.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos, self.sin)
        logits_BTV = self.head(self.norm(x_BTD.float()))
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def _turned(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions, in fp32."""
    x = x_BHTK.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK).to(x_BHTK.dtype)


class PlainStep:
    """The model, its optimizer, and one step of them: `questtrain.train.step.TrainingStep`'s rival,
    with its call."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.device, self.on_gpu = device, on_gpu
        self.micro_batch = config.micro_batch_size or config.batch_size
        self.gradient_clip = config.optim.gradient_clip
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self.model = PlainLlama(config.model, config.sequence_length, dtype).to(device)
        use_compile = on_gpu if config.compile == "auto" else config.compile == "true"
        self.loss_of = torch.compile(self.model, fullgraph=True) if use_compile else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            betas=(config.optim.beta1, config.optim.beta2),
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            fused=True,
        )

    def __call__(self, batch_BT: np.ndarray, lr: float) -> tuple[Tensor, Tensor]:
        """One step on int64 ``[batch, T + 1]`` rows: mean loss and gradient norm."""
        batch = torch.from_numpy(batch_BT)
        if self.on_gpu:
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        pieces = torch.split(batch, self.micro_batch)
        total = torch.zeros((), device=self.device)
        for tokens in pieces:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
                loss = self.loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            loss = loss / len(pieces)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.gradient_clip or math.inf, foreach=True
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm
