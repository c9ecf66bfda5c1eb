"""One optimizer step: a model, its loss in the precision of training, AdamW.

Where kernels serve the model's formats, `FusedLlama` computes the loss, on one GPU together with
its backward as a CUDA graph; where they do not, the model itself does, under torch.compile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from questtrain.config import TrainConfig
from questtrain.config.reproducible import SHARDS
from questtrain.cuda_graph import GraphedCall
from questtrain.errors import UserError
from questtrain.kernels import serves
from questtrain.kernels.formats import FP8_MULTIPLE
from questtrain.model import FusedLlama, Llama
from questtrain.train.evaluate import Loss, loss_function, product_dtype
from questtrain.train.gradient_tree import TreeSum
from questtrain.train.optimizer import build_optimizer, clipped_step, set_learning_rate
from questtrain.train.parallel import World

log = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)
"""The first GPUs whose tensor cores multiply FP8."""

WARM_STEPS = 2
"""Before one is captured as a CUDA graph."""

T = TypeVar("T")


def micro_batch_size(config: TrainConfig, world: World) -> int:
    """Sequences at once on each device."""
    return min(config.micro_batch_size or config.batch_size, config.batch_size // world.size)


def require_fp8(config: TrainConfig, device: torch.device, world: World) -> None:
    """UserError where no backward runs in FP8; which formats have one says `FusedLlama.of`."""
    micro = micro_batch_size(config, world)
    parts = SHARDS if config.train.reproducible else world.size
    smallest = math.gcd(micro, config.batch_size // parts)  # divides every micro-batch
    if device.type != "cuda":
        why = f"needs a GPU with FP8, and device={device.type} is none"
    elif (capability := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        needed, given = (".".join(map(str, each)) for each in (FP8_CAPABILITY, capability))
        why = f"needs a GPU of compute capability {needed} or newer, here is {given}"
    elif not serves(device):
        why = "needs the CUDA kernels, which do not run here (questtrain doctor says why)"
    elif product_dtype(device, config.train.autocast) != torch.bfloat16:
        why = f"rounds gradients in bf16, and train.autocast={config.train.autocast}"
    elif smallest * config.sequence_length % FP8_MULTIPLE:
        why = (
            f"needs micro-batches of a multiple of {FP8_MULTIPLE} tokens, not of {micro} ×"
            f" {config.sequence_length}"
        )
    else:
        return
    raise UserError(f"train.backward=fp8 {why}: choose train.backward=exact.")


class TrainingStep:
    """What a run trains, on one device, or one rank's copy of it.

    ``loss_of`` is the summed loss of inputs and targets ``[B, T]``, as fast as can be;
    ``eager_loss_of`` is the model's own, for looking inside.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, world: World | None = None
    ) -> None:
        self.config, self.device, self.world = config, device, world or World()
        self.micro_batch = micro_batch_size(config, self.world)
        self.model = Llama(config.model, config.bits, config.quant)
        self.model.init_weights(torch.Generator().manual_seed(config.seed))
        self.model.to(device)
        self.model.recompute(config.train.recompute)
        self.eager_loss_of = loss_function(self.model, device, config.train.autocast)
        self._fused = self._fused_llama()
        if self._fused is not None:
            self._fused.recompute(config.train.recompute)
        self.loss_of = self._fast_loss()
        self.optimizer = build_optimizer(self.model, config.optim, config.quant, config.lr)
        self._weights = list(self.model.parameters())
        self._summed: list[nn.Parameter] = []  # of them those that have gradients of their own
        self._graph = self._step_graph()

    def __call__(self, batch_BT: np.ndarray, lr: float) -> tuple[Tensor, Tensor]:
        """Update the weights by this rank's rows, int64 ``[rows, T+1]``, of a batch; returns the
        mean loss over the batch and the gradient's norm before clipping, on the device."""
        set_learning_rate(self.optimizer, lr)
        loss = self._backward(batch_BT)
        norm = clipped_step(self.optimizer, self.config.optim.gradient_clip)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def between_steps(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which looks at the model between steps; where memory is short, it
        is done once more with that of the graph, which the next step captures anew."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if self._graph is None or not self._graph.is_captured:
                raise
        self._graph.forget()
        return work()

    def release(self) -> None:
        """Free what the graph and the products hold; the next step makes it anew."""
        if self._graph is not None:
            self._graph.forget()
        if self._fused is not None:
            self._fused.forget_weights()

    def _backward(self, batch_BT: np.ndarray) -> Tensor:
        """Accumulate the gradient of the mean loss over the batch; returns that loss."""
        batch = torch.from_numpy(batch_BT)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        if self._fused is not None:
            self._fused.forget_weights()  # a graph has its own; validation's would take memory
        if self._graph is None:
            return self._accumulate(batch)
        loss, gradients = self._graph(batch)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return loss.clone()

    def _accumulate(self, batch: Tensor) -> Tensor:
        """`_backward` of a batch on the device."""
        fused = self._fused
        sums = len(batch) > self.micro_batch or self.world.size > 1
        with fused.summing_gradients() if fused and sums else nullcontext():
            if self.config.train.reproducible:
                return self._sum_shards(batch)
            total = self._sum(batch)
            if self.world.size > 1:
                self.world.all_reduce([*self._gradients(), total])
        return total

    def _sum(self, rows: Tensor) -> Tensor:
        """The share of ``rows`` in the mean loss over the batch, whose gradient is added."""
        targets_in_batch = self.config.batch_size * self.config.sequence_length
        total = torch.zeros((), device=self.device)
        for tokens in torch.split(rows, self.micro_batch):
            loss = self.loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            loss = loss / targets_in_batch
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _sum_shards(self, rows: Tensor) -> Tensor:
        """`_sum` of the whole batch, of which this rank has ``rows``: the same bits however many
        ranks have the rest."""
        tree = TreeSum()
        for shard in torch.split(rows, self.config.batch_size // SHARDS):
            loss = self._sum(shard)
            tree.add([loss, *self._take_gradients()])
        total, *gradients = tree.total
        self.world.tree_all_reduce([total, *gradients])
        self._put_gradients(gradients)
        return total

    def _loss_and_gradients(self, batch: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        loss = self._accumulate(batch)
        return loss, [weight.grad for weight in self._weights]

    def _gradients(self) -> Iterator[Tensor]:
        """What this rank's rows have given so far."""
        for weight in self._weights:
            if weight.grad is not None:
                yield weight.grad
        if self._fused is not None:
            yield from self._fused.gradient_sums()

    def _take_gradients(self) -> list[Tensor]:
        """`_gradients`, which are none from here on."""
        taken = list(self._gradients())
        self._summed = [weight for weight in self._weights if weight.grad is not None]
        for weight in self._summed:
            weight.grad = None
        if self._fused is not None:
            self._fused.forget_gradient_sums()
        return taken

    def _put_gradients(self, gradients: Sequence[Tensor]) -> None:
        """As if what `_take_gradients` took last were ``gradients``."""
        own = len(self._summed)
        for weight, gradient in zip(self._summed, gradients[:own], strict=True):
            weight.grad = gradient
        if self._fused is not None:
            self._fused.put_gradient_sums(gradients[own:])

    def _step_graph(self) -> GraphedCall[tuple[Tensor, list[Tensor | None]]] | None:
        """None where nothing is captured: several processes sum their gradients eagerly."""
        fused, on_gpu = self._fused is not None, self.device.type == "cuda"
        if not (fused and on_gpu and self.config.train.cuda_graph and self.world.size == 1):
            return None
        batch = torch.empty(0, dtype=torch.int64, device=self.device)
        return GraphedCall(self._loss_and_gradients, batch, WARM_STEPS, reads=self._weights)

    def _fast_loss(self) -> Loss:
        config, on_gpu = self.config, self.device.type == "cuda"
        compiles = on_gpu if config.compile == "auto" else config.compile == "true"
        if self._fused is None:
            return torch.compile(self.eager_loss_of) if compiles else self.eager_loss_of
        if compiles:
            self._fused.compile_parts()
        return self._fused

    def _fused_llama(self) -> FusedLlama | None:
        """None where the kernels do not run, or not for these formats."""
        settings = self.config.train
        if settings.backward == "fp8":
            require_fp8(self.config, self.device, self.world)
        if self.device.type == "cuda" and not serves(self.device):
            log.warning(
                "the CUDA kernels do not run here (questtrain doctor says why): the plain model is"
                " trained, which is slower"
            )
            return None
        dtype = product_dtype(self.device, settings.autocast)
        fused = FusedLlama.of(self.model, dtype, settings.save, settings.backward)
        what = f"{self.config.bits}, method {self.config.quant.method}"
        if self.config.quant.group_size:
            what += f", quant.group_size={self.config.quant.group_size}"
        if fused is None and settings.backward == "fp8":
            raise UserError(
                f"train.backward=fp8: there are no kernels for {what}: choose train.backward=exact."
            )
        if fused is None:
            log.info(
                "%s, method %s: no kernels for this; the plain model is trained",
                self.config.bits,
                self.config.quant.method,
            )
        return fused
