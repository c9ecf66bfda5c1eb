"""A quantized weight in a file: its codes in their bits, its scales; and one that is read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from questtrain.quant.dense_codes import (
    PAIR_CHOICES,
    choices_of,
    kept_by,
    pack_codes,
    packed_bytes,
    unpack_codes,
)
from questtrain.quant.linear import QuantLinear
from questtrain.quant.quantizer import QuantizedTensor, Quantizer

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of tensors, by name."""


@dataclass(frozen=True)
class StoredWeight:
    """How the weight ``[N, K]`` of one layer lies in a file. Its tensors:

    - ``codes`` uint8, flat (`questtrain.quant.dense_codes`): of a uniform grid the level indices,
      of FP4 the bit patterns; where sparsity prunes, those that it keeps alone;
    - ``half_widths`` fp32 ``[N, G]``, of the grids of groups of K/G columns (G = 1: of rows; one
      that was learned is repeated). Where they were trained as 16-bit numbers, ``units`` instead,
      in ``unit_dtype``: half a step of a grid, of which every value is a whole multiple;
    - ``pairs`` uint8, flat, where sparsity prunes: which 2 of each 4 pairs are kept.
    """

    shape: tuple[int, int]
    levels: int
    groups: int
    half_steps: float
    unit_dtype: torch.dtype | None
    sparse: bool

    @classmethod
    def of(cls, layer: QuantLinear) -> StoredWeight | None:
        """None for a layer whose weight is not quantized. The layer may be on the meta device."""
        quantizer = layer.weight_quantizer
        if not isinstance(quantizer, Quantizer):
            return None
        rows, columns = layer.weight.shape
        grid = quantizer.grid
        return cls(
            (rows, columns),
            grid.levels,
            columns // (quantizer.group or columns),
            2 * grid.half_width,
            quantizer.unit_dtype,
            quantizer.sparsity is not None,
        )

    @property
    def _stored(self) -> int:
        """Codes in the file: half of a sparse weight's."""
        return self.shape[0] * self.shape[1] // (2 if self.sparse else 1)

    @property
    def _choices(self) -> int:
        return self.shape[0] * self.shape[1] // 8

    def layout(self) -> Layout:
        """What `tensors` gives."""
        layout: Layout = {
            "codes": (torch.uint8, (packed_bytes(self._stored, self.levels),)),
        }
        if self.unit_dtype is None:
            layout["half_widths"] = (torch.float32, (self.shape[0], self.groups))
        else:
            layout["units"] = (self.unit_dtype, (self.shape[0], self.groups))
        if self.sparse:
            layout["pairs"] = (torch.uint8, (packed_bytes(self._choices, len(PAIR_CHOICES)),))
        return layout

    def tensors(self, weight: QuantizedTensor) -> dict[str, Tensor]:
        """A weight as its quantizer gives it, on the CPU."""
        codes = weight.codes if weight.kept is None else weight.codes[weight.kept]
        tensors = {"codes": pack_codes(codes, self.levels)}
        if self.unit_dtype is None:
            tensors["half_widths"] = weight.scale
        else:
            tensors["units"] = (weight.scale / self.half_steps).to(self.unit_dtype)
        if weight.kept is not None:
            tensors["pairs"] = pack_codes(choices_of(weight.kept), len(PAIR_CHOICES))
        return tensors

    def weight(self, tensors: Mapping[str, Tensor]) -> QuantizedTensor:
        """What `tensors` was given; the codes of pruned values, which stand for nothing, as 0."""
        codes = unpack_codes(tensors["codes"], self.levels, self._stored)
        if self.unit_dtype is None:
            scale = tensors["half_widths"].clone()
        else:
            scale = tensors["units"].float() * self.half_steps
        if not self.sparse:
            return QuantizedTensor(codes.view(self.shape), scale, None, None)
        choices = unpack_codes(tensors["pairs"], len(PAIR_CHOICES), self._choices)
        kept = kept_by(choices).view(self.shape)
        dense = torch.zeros(self.shape, dtype=torch.uint8).masked_scatter_(kept, codes)
        return QuantizedTensor(dense, scale, None, kept)


class StoredQuantizer(Quantizer):
    """The quantizer of a weight that is quantized already: ``read`` gives it whenever it is asked
    for, and the operand's numbers are not looked at, only its dtype and where it is."""

    def __init__(self, quantizer: Quantizer, read: Callable[[], QuantizedTensor]) -> None:
        super().__init__(
            quantizer.rotation,
            quantizer.scale,
            quantizer.grid,
            quantizer.estimator,
            quantizer.sparsity,
            rotate_back=quantizer.rotate_back,
            group=quantizer.group,
        )
        self._read = read

    def quantize(self, x: Tensor) -> QuantizedTensor:
        stored = self._read()
        return QuantizedTensor(
            stored.codes.to(x.device),
            stored.scale.to(x.device),
            None,
            None if stored.kept is None else stored.kept.to(x.device),
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        values = self.dequantize(self.quantize(x))
        if self.rotate_back:
            values = self.rotation(values)
        return values.to(x.dtype)
