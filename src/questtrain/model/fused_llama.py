"""The Llama that training runs: few kernels a block, weights quantized once a step.

`FusedLlama` shares the parameters of a `Llama` and computes the same function by stacked blocks
(`questtrain.model.stacked_llama`) of products with a backward. Each norm, with the residual
addition before it, is one kernel with the quantization of what it makes, and so is SwiGLU; head and
loss are one operation, so that the logits are never whole. The residual stream is in the products'
dtype.

Shape suffixes: B batch, T tokens, V vocabulary, D hidden size, M = B·T rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import head_dim
from questtrain.kernels import linear_cross_entropy
from questtrain.kernels.autograd import GradientSum
from questtrain.model.attention import next_angles
from questtrain.model.llama import Llama
from questtrain.model.products import StepProduct, norm_in_fp32, refresh, stacked_product
from questtrain.model.recompute import recomputed
from questtrain.model.stacked_llama import StackedBlock, stacked_blocks


class FusedLlama(nn.Module):
    """Token ids and targets ``[B, T]`` → the summed cross entropy in nats, a scalar.

    Its parameters are those of ``model``; they stay so when the model is trained, loaded or
    overwritten, but not when it is moved: make it after that.
    """

    def __init__(self, model: Llama, blocks: Sequence[StackedBlock], dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = model.config, dtype
        self._embed, self._normalized = _embed, _normalized
        self._summed: int | None = None
        self._recomputes = False
        self.embed_tokens, self.norm, self.lm_head = model.embed_tokens, model.norm, model.lm_head
        self._blocks = list(blocks)
        self.layers = nn.ModuleList(blocks)
        self._products = [each for each in self.layers.modules() if isinstance(each, StepProduct)]

    @classmethod
    def of(
        cls, model: Llama, dtype: torch.dtype, save: str = "codes", backward: str = "exact"
    ) -> FusedLlama | None:
        """With products in ``dtype``; None where the kernels do not serve the model's formats.

        UserError where they do, but not with ``backward`` fp8, which goes with bf16.
        """
        if head_dim(model.config) % 16:
            return None
        product_of = partial(stacked_product, dtype=dtype, save=save, backward=backward)
        blocks = stacked_blocks(model, product_of)
        return None if blocks is None else cls(model, blocks, dtype)

    def recompute(self, what: str) -> None:
        """Let backwards compute ``blocks`` again, ``gate_up`` (all that follows a block's
        attention), or ``none``."""
        self._recomputes = what == "blocks"
        for block in self._blocks:
            block.recomputes_gate_up = what == "gate_up"

    def compile_parts(self) -> None:
        """`torch.compile` what lies between the products; all blocks share what is compiled."""
        for block in self._blocks:
            block.compile_parts()
        self._embed = torch.compile(_embed, fullgraph=True, dynamic=False)
        self._normalized = torch.compile(_normalized, fullgraph=True, dynamic=False)

    @contextmanager
    def summing_gradients(self) -> Iterator[None]:
        """Around the micro-batches of a step, each a forward and its backward: the gradients of the
        blocks' weights are summed by the products, and the parameters get them at the end."""
        self._summed = 0
        try:
            yield
            for product in self._products if self._summed else ():
                product.finish_gradients()
        finally:
            self.forget_gradient_sums()
            self._summed = None

    def gradient_sums(self) -> list[Tensor]:
        """What `summing_gradients` has summed so far; other processes' sums are to be added."""
        return [product.sum.total for product in self._products if product.sum is not None]

    def forget_gradient_sums(self) -> None:
        """What comes is summed anew, in other memory."""
        self._summed = 0
        for product in self._products:
            product.sum = None

    def put_gradient_sums(self, totals: Sequence[Tensor]) -> None:
        """As if `gradient_sums` were ``totals``, in its order."""
        self._summed = 1
        for product, total in zip(self._products, totals, strict=True):
            product.sum = GradientSum(total, first=False)

    def forget_weights(self) -> None:
        """Give up the weights as they are derived for the products, until the next forward."""
        for product in self._products:
            product.forget()

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, ignored: int = -100) -> Tensor:
        """Targets that are ``ignored`` count in no loss."""
        self._prepare()
        rotary = next_angles(self.config, inputs_BT)
        x_MD = self._embed(self.embed_tokens.weight, inputs_BT, self.dtype)
        added_MD = torch.zeros_like(x_MD)  # not None: one compiled block serves all
        for block in self.layers:
            given = (x_MD, added_MD, inputs_BT.shape[0], rotary)
            x_MD, added_MD = recomputed(block, *given) if self._recomputes else block(*given)
        x_MD = self._normalized(x_MD, added_MD, self.norm.weight, self.norm.eps)
        return linear_cross_entropy(x_MD, self.lm_head.weight, targets_BT.flatten(), ignored)

    def _prepare(self) -> None:
        """What the products need before a forward."""
        refresh(self._products)
        if self._summed is not None and torch.is_grad_enabled():
            for product in self._products:
                product.sum_gradients(first=self._summed == 0)
            self._summed += 1


def _embed(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """``[M, D]``."""
    return F.embedding(tokens_BT.flatten(), weight_VD).to(dtype)


def _normalized(x_MD: Tensor, added_MD: Tensor, weight_D: Tensor, eps: float | None) -> Tensor:
    """`norm_in_fp32` of a sum."""
    return norm_in_fp32(x_MD + added_MD, weight_D, eps)
