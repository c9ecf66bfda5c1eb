"""What an export is made of: a run's checkpoint, read one weight at a time.

Nothing here holds more of a model than its largest layer, `Source.model` aside, which the
certificate compares with.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from questtrain.config import Bits, TrainConfig, at_step, is_skipped, parse_bits
from questtrain.config.loading import read_config
from questtrain.data import Tokenizer
from questtrain.errors import UserError
from questtrain.inference.load import for_use, tokenizer_of
from questtrain.inference.pack import pack
from questtrain.model import Llama
from questtrain.packed import Skeleton, is_packed_folder
from questtrain.quant import QuantLinear
from questtrain.quant.grid import Grid
from questtrain.quant.packing import rotation_block
from questtrain.quant.quantizer import Quantizer, Unquantized, decoded, encoded
from questtrain.store.checkpoint import Checkpoint, checkpoint_at, latest_checkpoint
from questtrain.store.files import no_such_folder
from questtrain.store.run_record import RunRecord, identity_columns, read_run_record


@dataclass(frozen=True)
class WeightCodes:
    """A quantized weight ``[N, K]`` as its quantizer stores it.

    ``codes`` uint8 ``[N, K]`` on ``grid``; ``half_widths`` fp32 ``[N, G]`` of groups of K/G columns
    (G = 1: of rows); ``kept`` bool ``[N, K]`` where sparsity prunes some. The codes are of the
    weight rotated in blocks of ``block`` columns, 1 where it is not. Where it ``rotates_back`` the
    values rotated once more multiply the layer's activations as they are given.
    """

    codes: Tensor
    grid: Grid
    half_widths: Tensor
    kept: Tensor | None
    block: int
    rotates_back: bool
    rotation: nn.Module

    def values(self) -> Tensor:
        """fp32 ``[N, K]`` in the space of the codes."""
        values = decoded(self.grid, self.codes, self.half_widths)
        return values if self.kept is None else torch.where(self.kept, values, 0.0)

    def folded(self) -> Tensor:
        """fp32 ``[N, K]``, the values that multiply what the layer is given, rotated back where the
        layer does so."""
        values = self.values()
        return self.rotation(values) if self.rotates_back else values

    def different(self, values: Tensor, folded: bool) -> int:
        """How many codes are others in ``values [N, K]``, which a file holds: `folded` or not."""
        if folded and self.rotates_back:
            values = self.rotation(values)
        found = encoded(self.grid, values.to(self.half_widths.dtype), self.half_widths)
        wrong = found != self.codes
        if self.kept is not None:
            # Rotated there and back, a pruned value is no longer 0 to the last bit.
            unit = (self.half_widths / (2 * self.grid.half_width)).unsqueeze(-1)
            far = values.reshape(*self.half_widths.shape, -1).abs() > unit / 2
            wrong = torch.where(self.kept, wrong, far.reshape(values.shape))
        return int(wrong.sum())


@dataclass(frozen=True)
class Source:
    """A run at one of its checkpoints. ``num_layers`` of its blocks are read, all by default."""

    run: Path
    config: TrainConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    record: RunRecord | None = field(repr=False)

    @classmethod
    def open(cls, run: str | Path, step: int | None = None) -> Source:
        """The newest intact checkpoint, or that of a ``step``. UserError for a folder that is no
        run, and for a run without checkpoints."""
        folder = Path(run).expanduser()
        if not folder.is_dir():
            raise no_such_folder(f"run={run}", folder)
        if is_packed_folder(folder):
            raise UserError(f"run={run} is a packed export: give the run that it was made of.")
        whole = read_config(folder / "config.yaml")
        checkpoint = latest_checkpoint(folder) if step is None else checkpoint_at(folder, step)
        if checkpoint is None:
            raise UserError(f"{folder} holds no checkpoint yet: there is nothing to export.")
        config = at_step(whole, checkpoint.step)  # before a switch the model is another
        record = read_run_record(folder) if config.bits == whole.bits else None
        tokenizer = tokenizer_of(folder, config)
        return cls(folder, config, checkpoint, tokenizer, record)

    def first(self, num_layers: int) -> Source:
        """The same with the first so many blocks alone: what a difference is looked for in."""
        model = replace(self.config.model, num_layers=num_layers)
        return replace(self, config=replace(self.config, model=model))

    @property
    def bits(self) -> Bits:
        return parse_bits(self.config.bits)

    @property
    def quantizes_activations(self) -> bool:
        """Whether some layer rounds what it is given."""
        skip = self.config.quant.skip
        return self.bits.activation.quantized and not all(
            is_skipped(name, skip) for name in self.linear_names()
        )

    @property
    def columns(self) -> dict[str, object]:
        """The run record's columns; of a run that has not ended those that are known."""
        return identity_columns(self.config) if self.record is None else self.record.columns

    @property
    def _file(self) -> Path:
        return self.checkpoint.folder / "model.safetensors"

    @cached_property
    def skeleton(self) -> Skeleton:
        """The model without its weights."""
        return Skeleton(self.config)

    def linear_names(self) -> list[str]:
        """The blocks' linear layers in the order of the model: ``layers.0.attention.q_proj``, …"""
        return list(self.skeleton.linears)

    def tensor_names(self) -> list[str]:
        """All other tensors of the model: embedding, norms, head, …"""
        of_linears = tuple(f"{name}." for name in self.linear_names())
        return [n for n in self.skeleton.model.state_dict() if not n.startswith(of_linears)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""
        return tuple(self.skeleton.model.state_dict()[name].shape)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the checkpoint, as it is stored (fp32)."""
        return self._read([name])[name]

    def meta_linear(self, name: str) -> QuantLinear:
        """One layer without its numbers."""
        return copy.deepcopy(self.skeleton.linears[name])

    def linear(self, name: str) -> QuantLinear:
        """One layer as it was trained, with its weight and its quantizers, on the CPU."""
        layer = self.meta_linear(name)
        layer.to_empty(device="cpu")
        keys = layer.state_dict()
        state = self._read([f"{name}.{key}" for key in keys])
        layer.load_state_dict({key: state[f"{name}.{key}"] for key in keys})
        return layer.eval().requires_grad_(False)

    def codes(self, name: str) -> WeightCodes | None:
        """The weight of a layer as codes; None where it is not quantized."""
        return weight_codes(self.linear(name))

    def folded(self, name: str) -> Tensor:
        """The matrix ``[N, K]`` of a layer, fp32: what multiplies its (quantized) input."""
        layer = self.linear(name)
        codes = weight_codes(layer)
        return layer.weight_quantizer(layer.weight) if codes is None else codes.folded()

    def model(self, packed: bool | torch.dtype, device: str = "cpu") -> nn.Module:
        """The whole model, as `questtrain.load` makes it. A dtype: packed, and all that is no code
        in that dtype, on a GPU too."""
        model = Llama(self.config.model, self.config.bits, self.config.quant)
        model.load_state_dict(self._read(list(model.state_dict())))
        if isinstance(packed, torch.dtype):
            return pack(model, packed).to(device)
        return for_use(model, torch.device(device), packed)

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        with safe_open(self._file, "pt") as file:
            held = set(file.keys())
            missing = [name for name in names if name not in held]
            if missing:
                raise UserError(f"checkpoint {self.checkpoint.folder} holds no {missing[0]}.")
            return {name: file.get_tensor(name) for name in names}


def weight_codes(layer: QuantLinear) -> WeightCodes | None:
    """What a layer's own quantizer makes of its weight; None where it has none."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, Quantizer):
        return None
    stored = quantizer.quantize(layer.weight)
    block = rotation_block(quantizer.rotation)
    assert block is not None  # build_quantizer makes no other rotations
    # Activations that are rotated and no more: rotating the values back gives the same product.
    only_rotates = isinstance(layer.activation_quantizer, Unquantized) and block > 1
    return WeightCodes(
        stored.codes,
        quantizer.grid,
        stored.scale,
        stored.kept,
        block,
        quantizer.rotate_back or only_rotates,
        quantizer.rotation,
    )
