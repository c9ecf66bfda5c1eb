"""The products of a block in training: their weights are quantized once between optimizer steps.

`stacked_product` chooses the kind. `QuantizedProduct` is of operands that both are on uniform grids
with a Gaussian scale a row, which the kernels quantize and multiply; weights whose scales are
rounded are quantized by their own quantizer. `DenseProduct` is of all the others whose scales are
not learned, those of groups of columns among them: the values of the weight are made once a step,
those of an activation once for all layers that share it, each by its own quantizer.

What is derived from the layers' parameters is kept until one of them changes: `refresh` compares
their version counters, which in-place operations raise (loading, a broadcast), the storage, which
`.to()` and assignment replace, and how many steps optimizers have made: a fused one raises no
counter. Writing through ``parameter.data`` goes unnoticed, as everywhere in torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from questtrain.errors import UserError
from questtrain.kernels import hadamard_quantize, pack_bits
from questtrain.kernels.autograd import (
    Gradient,
    GradientSum,
    Rounding,
    StepFormat,
    StepWeight,
    through_rounding,
    train_add_rmsnorm_linear,
    train_dense_linear,
    train_hadamard_linear,
    train_swiglu_linear,
)
from questtrain.kernels.elementwise import swiglu
from questtrain.kernels.formats import BLOCKS, FP8_MULTIPLE, MAX_PACKED_LEVELS
from questtrain.kernels.ops.backward import all_pass, hadamard_backward
from questtrain.kernels.ops.codes import dequantize
from questtrain.kernels.ops.fp8 import fp8_transpose
from questtrain.quant import Quantizer, QuantLinear, Unquantized
from questtrain.quant.estimator import OuterTrust
from questtrain.quant.packing import (
    has_kernel_sizes,
    quantized_rows,
    rotation_block,
    row_format,
)
from questtrain.quant.scale import GaussianScale, RoundedScale

SIDE_STREAMS = 4

_optimizer_steps = [0]
"""How many steps all optimizers of this process have made."""


def _count_step(*_: object) -> None:
    _optimizer_steps[0] += 1


register_optimizer_step_post_hook(_count_step)


class StepProduct(nn.Module):
    """A `questtrain.model.stacked_llama.Product` in ``dtype`` with a backward.

    The fp32 parameters of its layers become slices of one storage ``[N, K]``, so that they are
    quantized in one go; they stay parameters of their own in every other respect.
    """

    mask: Tensor | None
    block = 1
    rotates_back = False

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight for linear in linears)
        self.dtype = dtype
        self._stacked = torch.empty(0)
        self._rows = [weight.shape[0] for weight in self.weights]
        self._seen: tuple[int, ...] = ()
        self.sum: GradientSum | None = None

    def derive(self, stacked: Tensor) -> dict[str, Tensor | None]:
        """What a step uses of the parameters, fp32 ``[N, K]``: buffers by name, ``mask`` one."""
        raise NotImplementedError

    @property
    def is_stale(self) -> bool:
        """Whether a parameter has changed since what a step uses was derived."""
        return self._seen != self._state()

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive anew what a step uses."""
        seen, stacked = self._state(), self._stacked
        if not self._is_stacked():
            stacked = torch.cat([weight.detach() for weight in self.weights])
            for weight, part in zip(self.weights, torch.split(stacked, self._rows), strict=True):
                weight.data = part
            seen = self._state()
        self._stacked = stacked
        derived = self.derive(stacked)
        for name in derived:
            if name not in self._buffers:
                self.register_buffer(name, None, persistent=False)
        self._buffers.update(derived)  # setattr's checks would cost the host more than a kernel
        self._seen = seen

    def forget(self) -> None:
        """Give up what was derived; `refresh` derives it anew, whatever has changed."""
        self._seen = ()
        self._buffers.update(dict.fromkeys(self._buffers))

    @torch.no_grad()
    def sum_gradients(self, first: bool) -> None:
        """Let the next backward add to a sum instead of the parameters' gradients."""
        total = torch.empty_like(self._stacked) if self.sum is None else self.sum.total
        self.sum = GradientSum(total, first)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Give the sum to the parameters as their gradients."""
        assert self.sum is not None
        total, rounding = self.sum.total, self.rounding
        if rounding is not None:
            total = through_rounding(total, rounding)
        for weight, grad in zip(self.weights, torch.split(total, self._rows), strict=True):
            weight.grad = grad

    @property
    def gradient(self) -> Gradient:
        """Where a backward leaves the weight's gradient."""
        return list(self.weights) if self.sum is None else self.sum

    @property
    def rounding(self) -> Rounding | None:
        """How the weight became the values that are multiplied, None where they are itself."""
        return None if self.mask is None else Rounding(self.mask, self.block, self.rotates_back)

    def _state(self) -> tuple[int, ...]:
        of_weights = (n for weight in self.weights for n in (weight.data_ptr(), weight._version))
        return (*_optimizer_steps, *of_weights)

    def _is_stacked(self) -> bool:
        expected = self._stacked.data_ptr()
        for weight in self.weights:
            if weight.data_ptr() != expected or weight.device != self._stacked.device:
                return False
            expected += weight.numel() * weight.element_size()
        return True


def refresh(products: Iterable[StepProduct]) -> None:
    """Derive anew what is stale. On a GPU several products at a time: a small one does not fill it.

    What a side stream allocates is used elsewhere and freed without its knowing; it is reused only
    here, after waiting for all that was issued before.
    """
    stale = [product for product in products if product.is_stale]
    device = stale[0].weights[0].device if stale else None
    if device is None or device.type != "cuda":
        for product in stale:
            product.refresh()
        return
    here, aside = torch.cuda.current_stream(device), _side_streams(device)
    for stream in aside:
        stream.wait_stream(here)
    for product, stream in zip(stale, cycle(aside)):
        with torch.cuda.stream(stream):
            product.refresh()
    for stream in aside:
        here.wait_stream(stream)


@cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(SIDE_STREAMS))  # type: ignore[no-untyped-call]


class DenseProduct(StepProduct):
    """The values of the weight in the products' dtype, times those of the activation."""

    values: Tensor

    def __init__(self, linears: Sequence[QuantLinear], dtype: torch.dtype) -> None:
        super().__init__(linears, dtype)
        quantizer = self.weight_quantizer = linears[0].weight_quantizer
        self.activation_quantizer = linears[0].activation_quantizer
        self.block = _block_of(quantizer)
        self.rotates_back = isinstance(quantizer, Quantizer) and quantizer.rotate_back

    def derive(self, stacked: Tensor) -> dict[str, Tensor | None]:
        values, mask = self._rounded(stacked)
        return {"values": values.to(self.dtype), "mask": mask}

    def _rounded(self, stacked: Tensor) -> tuple[Tensor, Tensor | None]:
        """The values, and M as bits: of no columns where all of a rotated weight passes, None where
        the values are the weight."""
        quantizer = self.weight_quantizer
        if not isinstance(quantizer, Quantizer):
            return quantizer(stacked), all_pass(stacked) if self.block > 1 else None
        step = step_format(quantizer, may_rotate_back=True)
        if step is None:
            values, mask = quantizer.values_and_mask(stacked)
            return values, pack_bits(mask.view(torch.uint8), 1)
        quantized = hadamard_quantize(stacked, *step.form, trust=step.trust)
        values = dequantize(*quantized[:2], step.form.levels, torch.float32)
        if self.rotates_back:
            values = hadamard_backward(values, all_pass(stacked), self.block)
        return values, quantized.mask

    def plain(self, x_MK: Tensor) -> Tensor:
        fed = self.activation_quantizer(x_MK)
        return train_dense_linear(fed, self.values, self.gradient, self.rounding)

    def after_norm(
        self, x_MK: Tensor, added_MK: Tensor | None, norm_K: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        hidden = x_MK if added_MK is None else x_MK + added_MK
        return hidden, self.plain(norm_in_fp32(hidden, norm_K, eps))

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return self.plain(swiglu(gate_up))


class QuantizedProduct(StepProduct):
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
        self,
        linears: Sequence[QuantLinear],
        formats: tuple[StepFormat, StepFormat],
        dtype: torch.dtype,
        save: str,
        backward: str,
    ) -> None:
        super().__init__(linears, dtype)
        quantizer = linears[0].weight_quantizer
        assert isinstance(quantizer, Quantizer)
        self.rounding_quantizer = None if quantizer.unit_dtype is None else quantizer
        self.weight_format, activation = formats
        self.block = self.weight_format.form.block
        self.fp8, self.packed = backward == "fp8", save == "packed"
        if self.fp8:
            _check_fp8(linears, max(each.form.levels for each in formats))
        packs = self.packed and activation.form.levels <= MAX_PACKED_LEVELS
        self.activation_format = activation._replace(packed=packs)

    def derive(self, stacked: Tensor) -> dict[str, Tensor | None]:
        form, values = self.weight_format.form, None
        if self.rounding_quantizer is None:
            quantized = hadamard_quantize(stacked, *form, trust=self.weight_format.trust)
        else:
            quantized = quantized_rows(self.rounding_quantizer, stacked)
        if self.fp8 and not self.packed:
            values = fp8_transpose(quantized.codes, form.levels)
        elif not self.packed:
            values = dequantize(*quantized[:2], form.levels, self.dtype)
        return {**quantized._asdict(), "values": values}

    def plain(self, x_MK: Tensor) -> Tensor:
        return train_hadamard_linear(x_MK, *self._operands())

    def after_norm(
        self, x_MK: Tensor, added_MK: Tensor | None, norm_K: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        added_MK = torch.zeros_like(x_MK) if added_MK is None else added_MK
        return train_add_rmsnorm_linear(x_MK, added_MK, norm_K, eps, *self._operands())

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return train_swiglu_linear(gate_up, *self._operands())

    def _operands(self) -> tuple[StepFormat, StepWeight, Gradient]:
        tensors = (self.codes, self.scales, self.sums, self.mask, self.values)
        weight = StepWeight(*tensors, self.weight_format.form.levels, self.block, self.fp8)
        return self.activation_format, weight, self.gradient


def stacked_product(
    linears: Sequence[nn.Module], dtype: torch.dtype, save: str, backward: str = "exact"
) -> DenseProduct | QuantizedProduct | None:
    """One product of layers that share their input, without their biases; None where they cannot be
    one.

    UserError where they can, but not with such a ``backward``.
    """
    layers = [each for each in linears if isinstance(each, QuantLinear) and has_kernel_sizes(each)]
    if len(layers) < len(linears):
        return None
    pairs = [(layer.weight_quantizer, layer.activation_quantizer) for layer in layers]
    kinds = {tuple(map(_kind, pair)) for pair in pairs}
    if len(kinds) > 1 or None in kinds.pop():
        return None
    weight = step_format(pairs[0][0], may_round_scale=True)
    activation = step_format(pairs[0][1])
    if weight is not None and activation is not None:
        return QuantizedProduct(layers, (weight, activation), dtype, save, backward)
    if backward == "fp8" and layers[0].bits.quantized:
        return None
    return DenseProduct(layers, dtype)


def step_format(
    quantizer: nn.Module, may_rotate_back: bool = False, may_round_scale: bool = False
) -> StepFormat | None:
    """How the kernels quantize an operand as ``quantizer`` does, None if they do not; see
    `row_format`."""
    form = row_format(quantizer, may_rotate_back, may_round_scale)
    estimator = getattr(quantizer, "estimator", None)
    if form is None or not isinstance(estimator, OuterTrust):
        return None
    return StepFormat(form, estimator.outer_trust_scale)


def norm_in_fp32(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """RMSNorm of rows ``x [M, K]``, computed in fp32 and rounded once to x's dtype."""
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def _check_fp8(linears: Sequence[QuantLinear], levels: int) -> None:
    rows, width = sum(linear.out_features for linear in linears), linears[0].in_features
    if levels > MAX_PACKED_LEVELS:
        raise UserError(
            f"train.backward=fp8 multiplies integers of up to {MAX_PACKED_LEVELS} levels, which FP8"
            f" holds exactly, and bits={linears[0].bits} has {levels}: choose at most 4 bits, or"
            " train.backward=exact."
        )
    if rows % FP8_MULTIPLE or width % FP8_MULTIPLE:
        raise UserError(
            f"train.backward=fp8 needs sizes that are multiples of {FP8_MULTIPLE}, and a product"
            f" of the blocks is {rows} × {width}: choose train.backward=exact."
        )


def _kind(quantizer: nn.Module) -> Hashable | None:
    """What tells two quantizers apart, None for one with a state of its own or another block."""
    block = _block_of(quantizer)
    if block not in BLOCKS:
        return None
    if isinstance(quantizer, Unquantized):
        return block, None
    if not isinstance(quantizer, Quantizer) or quantizer.offset is not None:
        return None
    if not isinstance(quantizer.scale, GaussianScale | RoundedScale):
        return None
    pieces = (quantizer.grid, quantizer.estimator, quantizer.sparsity, quantizer.rotate_back)
    stored = (quantizer.group, quantizer.unit_dtype)
    return block, quantizer.scale.alpha, *pieces, *stored


def _block_of(quantizer: nn.Module) -> int:
    """The block of a quantizer's rotation: 1 without one, 0 for another kind of rotation."""
    rotation = getattr(quantizer, "rotation", None)
    return 1 if rotation is None else rotation_block(rotation) or 0
