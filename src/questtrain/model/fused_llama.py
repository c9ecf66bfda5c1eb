"""The same Llama as training runs it: few kernels a block, weights quantized once a step.

`FusedLlama` shares the parameters of a `Llama` and computes the same function. Each norm, with the
residual addition before it, is one kernel with the quantization of what it makes, and so is SwiGLU;
Q, K and V are one product, gate and up another; the residual addition after a product waits for the
next norm; head and loss go together, so that the logits are never whole:

    + residual, norm, quantize → qkv → rotary, attention → quantize → o
    + residual, norm, quantize → gate and up → SwiGLU, quantize → down

The residual stream is in the products' dtype. Shape suffixes: B batch, T tokens, D hidden size,
M = B·T rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.kernels import linear_cross_entropy
from questtrain.kernels.elementwise import split_rotary
from questtrain.model.attention import Rotary, rotary_angles
from questtrain.model.llama import Block, Llama
from questtrain.quant.step_products import stacked_matrix
from questtrain.quant.step_weights import Matrix, refresh


class FusedBlock(nn.Module):
    """One transformer block; the residual stream comes and goes as two summands ``[M, D]``."""

    def __init__(self, block: Block, matrices: Mapping[str, Matrix]) -> None:
        super().__init__()
        self.num_heads = block.attention.num_heads
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        self.qkv, self.o = matrices["qkv"], matrices["o"]
        self.gate_up, self.down = matrices["gate_up"], matrices["down"]

    def forward(
        self, x_MD: Tensor, added_MD: Tensor, batch: int, rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        x_MD, qkv = self.qkv.after_norm(x_MD, added_MD, self.attention_norm)
        y_MD = _attention(qkv.view(batch, -1, qkv.shape[1]), self.num_heads, rotary)
        added_MD = self.o.plain(y_MD)
        x_MD, gate_up = self.gate_up.after_norm(x_MD, added_MD, self.mlp_norm)
        return x_MD, self.down.after_swiglu(gate_up)


class FusedLlama(nn.Module):
    """Token ids and targets ``[B, T]`` → the summed cross entropy in nats, a scalar.

    Its parameters are those of ``model``; they stay so when the model is trained, loaded or
    overwritten, but not when it is moved: make it after that.
    """

    def __init__(
        self, model: Llama, matrices: Sequence[Mapping[str, Matrix]], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = model.config
        self.dtype = dtype
        self._embed: Callable[..., Tensor] = _embed
        self._normalized: Callable[..., Tensor] = _normalized
        self._matrices = [matrix for of_block in matrices for matrix in of_block.values()]
        self._summed: int | None = None
        self.embed_tokens, self.norm, self.lm_head = model.embed_tokens, model.norm, model.lm_head
        self.layers = nn.ModuleList(
            FusedBlock(block, of_block)
            for block, of_block in zip(_blocks(model), matrices, strict=True)
        )

    @classmethod
    def of(
        cls, model: Llama, dtype: torch.dtype, save: str = "codes", backward: str = "exact"
    ) -> FusedLlama | None:
        """With products in ``dtype``; None where the kernels do not serve the model's formats.

        UserError where they do, but not with ``backward`` fp8, which goes with bf16.
        """
        head_width = model.config.hidden_size // model.config.num_heads
        if head_width % 16:
            return None
        matrices = [_matrices(block, dtype, save, backward) for block in _blocks(model)]
        complete = [of_block for of_block in matrices if of_block is not None]
        return cls(model, complete, dtype) if len(complete) == len(matrices) else None

    def compile_parts(self) -> None:
        """`torch.compile` what lies between the products; all blocks share what is compiled."""
        for block in self.layers:
            block.compile(fullgraph=True, dynamic=False)
        self._embed = torch.compile(_embed, fullgraph=True, dynamic=False)
        self._normalized = torch.compile(_normalized, fullgraph=True, dynamic=False)

    @contextmanager
    def summing_gradients(self) -> Iterator[None]:
        """Around the micro-batches of a step, each a forward and its backward: the gradients of the
        blocks' matrices are summed by the products, and the parameters get them at the end."""
        self._summed = 0
        try:
            yield
            for matrix in self._matrices if self._summed else ():
                matrix.finish_gradients()
        finally:
            self._summed = None
            for matrix in self._matrices:
                matrix.sum = None

    def gradient_sums(self) -> list[Tensor]:
        """What `summing_gradients` has summed so far; other processes' sums are to be added."""
        return [matrix.sum.total for matrix in self._matrices if matrix.sum is not None]

    def forget_weights(self) -> None:
        """Give up the weights as they are derived for the products, until the next forward."""
        for matrix in self._matrices:
            matrix.forget()

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, ignored: int = -100) -> Tensor:
        """Targets that are ``ignored`` count in no loss."""
        self._prepare()
        batch, length = inputs_BT.shape
        rotary = rotary_angles(self.config, torch.arange(length, device=inputs_BT.device))
        x_MD = self._embed(self.embed_tokens.weight, inputs_BT, self.dtype)
        added_MD = torch.zeros_like(x_MD)
        for block in self.layers:
            x_MD, added_MD = block(x_MD, added_MD, batch, rotary)
        x_MD = self._normalized(x_MD, added_MD, self.norm.weight, self.norm.eps)
        return linear_cross_entropy(x_MD, self.lm_head.weight, targets_BT.flatten(), ignored)

    def _prepare(self) -> None:
        """What the matrices need before a forward."""
        summed = self._summed if torch.is_grad_enabled() else None
        refresh(self._matrices)
        if summed is not None:
            for matrix in self._matrices:
                matrix.sum_gradients(first=summed == 0)
            self._summed = summed + 1


def _attention(qkv: Tensor, heads: int, rotary: Rotary) -> Tensor:
    """`questtrain.model.attention.causal_attention` of ``[B, T, 3D]``: ``[M, D]``."""
    q, k, v = (part.transpose(1, 2) for part in split_rotary(qkv, *rotary, heads))
    y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y_BHTK.transpose(1, 2).flatten(2).flatten(0, 1)


def _embed(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """``[M, D]``."""
    return F.embedding(tokens_BT.flatten(), weight_VD).to(dtype)


def _normalized(x_MD: Tensor, added_MD: Tensor, weight_D: Tensor, eps: float | None) -> Tensor:
    """The norm of a sum, in its dtype."""
    hidden = (x_MD + added_MD).float()
    return F.rms_norm(hidden, weight_D.shape, weight_D, eps).to(x_MD.dtype)


def _blocks(model: Llama) -> list[Block]:
    return [block for block in model.layers if isinstance(block, Block)]


def _matrices(
    block: Block, dtype: torch.dtype, save: str, backward: str
) -> dict[str, Matrix] | None:
    """A block's four matrices, None where the kernels do not serve one of them."""
    matrices = {}
    for name, linears in block.products().items():
        matrix = stacked_matrix(linears, dtype, save, backward)
        if matrix is None:
            return None
        matrices[name] = matrix
    return matrices
