"""The blocks' weights as training uses them between two optimizer steps: quantized once.

A matrix stacks the weights of layers that share an input (Q, K and V; gate and up), so that they
are one product. Their parameters become slices of one fp32 storage, so that they are quantized in
one go; they stay parameters of their own in every other respect.

What is derived from the parameters is kept until one of them changes: `refresh` compares their
version counters, which in-place operations raise (loading, a broadcast), the storage, which `.to()`
and assignment replace, and how many steps optimizers have made: a fused one raises no counter.
Writing through ``parameter.data`` goes unnoticed, as everywhere in torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from questtrain.errors import UserError
from questtrain.kernels import hadamard_quantize, training
from questtrain.kernels.elementwise import swiglu
from questtrain.kernels.formats import MAX_PACKED_LEVELS, Quantized
from questtrain.kernels.reference_fp8 import MULTIPLE
from questtrain.kernels.training import Gradient, GradientSum, Operand, StepWeight
from questtrain.quant.estimator import OuterTrust
from questtrain.quant.linear import QuantLinear
from questtrain.quant.packing import has_kernel_sizes, row_format
from questtrain.quant.quantizer import Quantizer, Unquantized

SIDE_STREAMS = 4


class _Steps:
    """Counts the steps of all optimizers of this process."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        self.count += 1


_steps = _Steps()


class Matrix(nn.Module):
    """The stacked weight ``[N, K]`` of layers that share an input, in the products' ``dtype``."""

    def __init__(self, linears: Sequence[QuantLinear], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight for linear in linears)
        self.dtype = dtype
        self._stacked = torch.empty(0)
        self._seen: tuple[int, ...] = ()
        self.sum: GradientSum | None = None

    @property
    def is_stale(self) -> bool:
        """Whether a parameter has changed since what is used in a step was derived."""
        return self._seen != self._state()

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive anew what is used in a step."""
        seen, stacked = self._state(), self._stacked
        if not self._is_stacked():
            stacked = torch.cat([weight.detach() for weight in self.weights])
            for weight, part in zip(self.weights, torch.split(stacked, self._rows()), strict=True):
                weight.data = part
            seen = self._state()
        self._stacked = stacked
        self.derive(stacked)
        self._seen = seen

    def derive(self, stacked: Tensor) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        """Give up what is derived; `refresh` derives it anew, whatever has changed."""
        self._seen = ()
        self._buffers.update(dict.fromkeys(self._buffers))

    def _replace_buffers(self, **buffers: Tensor | None) -> None:
        """`register_buffer` the first time; its checks would cost the host more than a kernel."""
        if buffers.keys() <= self._buffers.keys():
            self._buffers.update(buffers)
            return
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def sum_gradients(self, first: bool) -> None:
        """Let the next backward add to a sum instead of the parameters' gradients."""
        total = torch.empty_like(self._stacked) if self.sum is None else self.sum.total
        self.sum = GradientSum(total, first)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Give the sum to the parameters as their gradients."""
        assert self.sum is not None
        grads = torch.split(self.gradient_of(self.sum.total), self._rows())
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad

    def gradient_of(self, total: Tensor) -> Tensor:
        """The gradient of the stacked weight from the sum of grad_yᵀ·x̂."""
        raise NotImplementedError

    @property
    def gradient(self) -> Gradient:
        """Where a backward leaves the weight's gradient."""
        return list(self.weights) if self.sum is None else self.sum

    def plain(self, x_MK: Tensor) -> Tensor:
        """``x·wᵀ``."""
        raise NotImplementedError

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """``x + added``, and its norm times wᵀ."""
        raise NotImplementedError

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate)·up`` of ``[M, 2K]`` times wᵀ."""
        raise NotImplementedError

    def _rows(self) -> list[int]:
        return [weight.shape[0] for weight in self.weights]

    def _state(self) -> tuple[int, ...]:
        of_weights = (n for weight in self.weights for n in (weight.data_ptr(), weight._version))
        return (_steps.count, *of_weights)

    def _is_stacked(self) -> bool:
        expected = self._stacked.data_ptr()
        for weight in self.weights:
            if weight.data_ptr() != expected or weight.device != self._stacked.device:
                return False
            expected += weight.numel() * weight.element_size()
        return True


def refresh(matrices: Iterable[Matrix]) -> None:
    """Derive anew what is stale. On a GPU several matrices at a time: a small one does not fill it.

    What a side stream allocates is used elsewhere and freed without its knowing; it is reused only
    here, after waiting for all that was issued before.
    """
    stale = [matrix for matrix in matrices if matrix.is_stale]
    device = stale[0].weights[0].device if stale else None
    if device is None or device.type != "cuda":
        for matrix in stale:
            matrix.refresh()
        return
    here, aside = torch.cuda.current_stream(device), _side_streams(device)
    for stream in aside:
        stream.wait_stream(here)
    for matrix, stream in zip(stale, cycle(aside)):
        with torch.cuda.stream(stream):
            matrix.refresh()
    for stream in aside:
        here.wait_stream(stream)


@cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(SIDE_STREAMS))  # type: ignore[no-untyped-call]


class DenseMatrix(Matrix):
    """Unquantized: the values in 16 bits, cast once."""

    def derive(self, stacked: Tensor) -> None:
        self._replace_buffers(values=stacked.to(self.dtype))

    def gradient_of(self, total: Tensor) -> Tensor:
        return total

    def plain(self, x_MK: Tensor) -> Tensor:
        return training.dense_linear(x_MK, self.get_buffer("values"), self.gradient)

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        hidden = x_MK + added_MK
        normalized = F.rms_norm(hidden.float(), norm.normalized_shape, norm.weight, norm.eps)
        return hidden, self.plain(normalized.to(self.dtype))

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return self.plain(swiglu(gate_up))


class QuantizedMatrix(Matrix):
    """Codes, and what the backward multiplies: their values, or with ``backward`` fp8 the codes in
    FP8.

    ``save`` is what a step keeps of quantized operands for its backward: ``codes``, a byte a value,
    or ``packed``, their own few bits; then the weight's values are made anew in the backward, too.
    """

    codes: Tensor
    scales: Tensor
    sums: Tensor
    mask: Tensor
    values: Tensor | None

    def __init__(
        self, linears: Sequence[QuantLinear], dtype: torch.dtype, save: str, backward: str
    ) -> None:
        super().__init__(linears, dtype)
        weight = operand_of(linears[0].weight_quantizer)
        activation = operand_of(linears[0].activation_quantizer)
        assert weight is not None
        assert activation is not None
        self.weight_operand = weight
        self.fp8 = backward == "fp8"
        if self.fp8:
            _check_fp8(linears, max(weight.form.levels, activation.form.levels))
        self.packed = save == "packed"
        packs = self.packed and activation.form.levels <= MAX_PACKED_LEVELS
        self.operand = activation._replace(packed=packs)

    def derive(self, stacked: Tensor) -> None:
        form, trust = self.weight_operand.form, self.weight_operand.trust
        quantized = hadamard_quantize(stacked, *form, trust=trust)
        values = None if self.packed else self._multiplied(quantized)
        self._replace_buffers(**quantized._asdict(), values=values)

    def _multiplied(self, quantized: Quantized) -> Tensor:
        """By the backward."""
        ops, levels = torch.ops.questtrain, self.weight_operand.form.levels
        values: Tensor = (
            ops.fp8_transpose(quantized.codes, levels)
            if self.fp8
            else ops.dequantize(*quantized[:2], levels, self.dtype)
        )
        return values

    def gradient_of(self, total: Tensor) -> Tensor:
        block = self.weight_operand.form.block
        grad: Tensor = torch.ops.questtrain.hadamard_backward(total, self.mask, block)
        return grad

    def plain(self, x_MK: Tensor) -> Tensor:
        return training.hadamard_linear(x_MK, self.operand, self._weight(), self.gradient)

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        assert norm.eps is not None
        return training.add_rmsnorm_linear(
            x_MK, added_MK, norm.weight, norm.eps, self.operand, self._weight(), self.gradient
        )

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return training.swiglu_linear(gate_up, self.operand, self._weight(), self.gradient)

    def _weight(self) -> StepWeight:
        form = self.weight_operand.form
        tensors = (self.codes, self.scales, self.sums, self.mask, self.values)
        return StepWeight(*tensors, form.levels, form.block, self.fp8)


def operand_of(quantizer: nn.Module) -> Operand | None:
    """How the kernels quantize such an operand, None if they do not."""
    form = row_format(quantizer)
    if form is None or not isinstance(quantizer, Quantizer):
        return None
    estimator = quantizer.estimator
    return Operand(form, estimator.outer_trust_scale) if isinstance(estimator, OuterTrust) else None


def stacked_matrix(
    linears: Sequence[nn.Module], dtype: torch.dtype, save: str, backward: str = "exact"
) -> Matrix | None:
    """One matrix of layers that share their input, None where the kernels do not serve them.

    UserError where they do, but not with such a ``backward``.
    """
    layers = [linear for linear in linears if isinstance(linear, QuantLinear)]
    if len(layers) < len(linears) or any(layer.bias is not None for layer in layers):
        return None
    if not all(has_kernel_sizes(layer) for layer in layers):
        return None
    if all(_is_dense(layer) for layer in layers):
        return DenseMatrix(layers, dtype)
    kinds = {
        (operand_of(layer.weight_quantizer), operand_of(layer.activation_quantizer))
        for layer in layers
    }
    if len(kinds) > 1 or None in kinds.pop():
        return None
    return QuantizedMatrix(layers, dtype, save, backward)


def _check_fp8(linears: Sequence[QuantLinear], levels: int) -> None:
    rows, width = sum(linear.out_features for linear in linears), linears[0].in_features
    if levels > MAX_PACKED_LEVELS:
        raise UserError(
            f"train.backward=fp8 multiplies integers of up to {MAX_PACKED_LEVELS} levels, which FP8"
            f" holds exactly, and bits={linears[0].bits} has {levels}: choose at most 4 bits, or"
            " train.backward=exact."
        )
    if rows % MULTIPLE or width % MULTIPLE:
        raise UserError(
            f"train.backward=fp8 needs sizes that are multiples of {MULTIPLE}, and a product of the"
            f" blocks is {rows} × {width}: choose train.backward=exact."
        )


def _is_dense(layer: QuantLinear) -> bool:
    pair = (layer.weight_quantizer, layer.activation_quantizer)
    return all(isinstance(each, Unquantized) and each.rotation is None for each in pair)
