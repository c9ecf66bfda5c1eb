"""Layers that `convert` cannot take, and why: what is not converted is named."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from questtrain.errors import UserError
from questtrain.quant.conv1d import QuantConv1D, is_conv1d
from questtrain.quant.layer_names import listed
from questtrain.quant.linear import QuantLinear

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

NO_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, _ConvNd)
"""Kinds that hold no matrix of a linear layer: nobody expects `convert` to quantize them."""


def is_quantized(layer: nn.Module) -> bool:
    """Whether `convert` made this layer, or its user."""
    return isinstance(layer, QuantLinear | QuantConv1D)


def takes(layer: nn.Module) -> bool:
    """Whether `convert` can turn this layer into a quantized one."""
    if type(layer) is nn.Linear:
        return _obstacle(layer, (layer.out_features, layer.in_features)) is None
    return is_conv1d(layer) and _obstacle(layer, None) is None


def reason_left(layer: nn.Module) -> str | None:
    """Why a layer that multiplies with matrices of its own cannot be converted; None for one that
    can, or that has none (children are asked for themselves)."""
    kind = _kind(layer)
    if is_quantized(layer) or takes(layer) or isinstance(layer, NO_MATRICES):
        return None
    if isinstance(layer, nn.MultiheadAttention):
        return f"{kind} multiplies with the weights of its projections itself"
    if isinstance(layer, nn.Linear):
        return _linear_obstacle(layer)
    if is_conv1d(layer):
        return _obstacle(layer, None)
    if matrices := own_matrices(layer):
        shapes = [f"{name} {list(matrix.shape)}" for name, matrix in matrices.items()]
        return f"{kind} multiplies with weights of its own ({listed(shapes)})"
    if "linear" in kind.lower() and _holds_numbers(layer):
        return f"{kind} is a linear layer of another library"
    return None


def own_matrices(layer: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's own parameters that are matrices or stacks of them (the experts of a mixture); not
    those with a dimension of 1, which are added, as a table of positions is."""
    return {
        name: parameter
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.ndim >= 2 and min(parameter.shape) > 1
    }


def check_wrappers(module: nn.Module, new_parameters: bool) -> None:
    """UserError for a model whose wrapper would not know what `convert` does to it."""
    for part in module.modules():
        name = type(part).__name__
        if name == "FullyShardedDataParallel" or any(
            hasattr(parameter, "placements") for parameter in part.parameters(recurse=False)
        ):
            raise UserError(
                "the model is sharded already: call convert() before fully_shard() (or FSDP, or a"
                " parallel plan), which then knows the quantized layers."
            )
        if new_parameters and isinstance(part, nn.parallel.DistributedDataParallel):
            raise UserError(
                "this method trains scales, parameters that DistributedDataParallel would not know"
                " and not synchronize: call convert() before wrapping the model."
            )


def _linear_obstacle(layer: nn.Linear) -> str:
    kind = _kind(layer)
    if isinstance(layer, LazyModuleMixin):
        return f"{kind} has no weight yet: run the model once first"
    if is_parametrized(layer):
        return (
            f"{kind} computes its weight: torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if type(layer) is not nn.Linear:
        return f"{kind} is a kind of nn.Linear of its own"
    return _obstacle(layer, (layer.out_features, layer.in_features)) or ""


def _obstacle(layer: nn.Module, shape: tuple[int, int] | None) -> str | None:
    """What is unusual about a layer of a known class."""
    if "forward" in vars(layer):
        return "its forward was replaced on the object (accelerate's hooks do): convert() first"
    weight = getattr(layer, "weight", None)
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}"
    assert isinstance(weight, Tensor)
    if weight.dtype not in DTYPES:
        return f"its weight is of {weight.dtype}"
    if shape is not None and weight.shape != shape:
        return f"its weight is {list(weight.shape)} instead of {list(shape)}"
    return None


def _holds_numbers(layer: nn.Module) -> bool:
    """Whether a layer that is called linear is one, without being a wrapper around one (LoRA)."""
    if any(isinstance(inner, nn.Linear) for inner in layer.modules()):
        return False
    stored = [buffer for buffer in layer.buffers(recurse=False) if buffer.ndim >= 2]
    return bool(stored) or hasattr(layer, "in_features")


def _kind(layer: nn.Module) -> str:
    """``nn.MultiheadAttention``, ``bitsandbytes.Linear4bit``, ``Experts``."""
    name, home = type(layer).__name__, type(layer).__module__
    if home.startswith("torch.nn.modules."):
        return f"nn.{name}"
    library = home.partition(".")[0]
    return name if library in ("__main__", "builtins") else f"{library}.{name}"
