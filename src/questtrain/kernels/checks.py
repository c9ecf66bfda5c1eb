"""Argument checks of the ops: op, argument, what is expected, what came.

The libraries' bindings check the same in the same words. Each check raises RuntimeError for what is
wrong: kernels behind torch's stable C++ interface can raise nothing else, and torch's own do it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.formats import BLOCKS, LEVELS, MAX_PACKED_LEVELS, container_bits

FLOATING = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernels take where they take numbers that are not codes."""


def check_matrix(
    op: str,
    name: str,
    tensor: Tensor,
    rows: int | None,
    columns: int | None,
    dtypes: tuple[torch.dtype, ...],
    like: Tensor,
) -> None:
    """``[rows, columns]`` (None: any), of one of ``dtypes``, contiguous, on ``like``'s device."""
    if tensor.dim() != 2:
        raise RuntimeError(f"{op}: {name} must have 2 dimensions, not shape {list(tensor.shape)}")
    for expected, actual in ((rows, tensor.shape[0]), (columns, tensor.shape[1])):
        if expected is not None and expected != actual:
            shape = [_any(rows), _any(columns)]
            raise RuntimeError(f"{op}: {name} must be {shape}, not {list(tensor.shape)}")
    _check_layout(op, name, tensor, dtypes, like)


def check_vector(
    op: str,
    name: str,
    tensor: Tensor,
    length: int,
    dtypes: tuple[torch.dtype, ...],
    like: Tensor,
) -> None:
    """``[length]``, of one of ``dtypes``, contiguous, on ``like``'s device."""
    if tensor.dim() != 1 or tensor.shape[0] != length:
        raise RuntimeError(f"{op}: {name} must be [{length}], not {list(tensor.shape)}")
    _check_layout(op, name, tensor, dtypes, like)


def check_output(op: str, dtype: torch.dtype) -> None:
    """The dtype of a result: one of `FLOATING`."""
    if dtype not in FLOATING:
        raise RuntimeError(f"{op}: dtype must be {_one_of(FLOATING)}, not {dtype}")


def check_format(
    op: str,
    width: int,
    levels: int,
    alpha: float,
    block: int,
    packed: bool = False,
    among: tuple[int, ...] = LEVELS,
) -> None:
    """What rows of ``width`` elements are quantized to."""
    check_levels(op, "levels", levels, among)
    if packed:
        check_packed_levels(op, "levels", levels)
    check_block(op, width, block)
    if not alpha > 0:
        raise RuntimeError(f"{op}: alpha must be positive, not {alpha}")


def check_levels(op: str, name: str, levels: int, among: tuple[int, ...] = LEVELS) -> None:
    """The levels of a grid."""
    if levels not in among:
        raise RuntimeError(f"{op}: {name} must be one of {among}, not {levels}")


def check_block(op: str, width: int, block: int) -> None:
    """Rows of ``width`` elements that are rotated."""
    if block not in BLOCKS:
        raise RuntimeError(f"{op}: block must be one of {BLOCKS}, not {block}")
    if width <= 0 or width % 32 or width % block:
        raise RuntimeError(
            f"{op}: the width {width} must be a multiple of 32 and of the block {block}"
        )


def check_packed_levels(op: str, name: str, levels: int) -> int:
    """The bits of one code."""
    if not 2 <= levels <= MAX_PACKED_LEVELS:
        raise RuntimeError(f"{op}: {name} of packed codes must be 2 to 16, not {levels}")
    return container_bits(levels)


def check_operand(op: str, name: str, x: Tensor) -> None:
    """Rows that can be quantized."""
    check_matrix(op, name, x, None, None, FLOATING, x)


def check_norm(
    op: str, x: Tensor, weight: Tensor, residual: Tensor | None = None, name: str = "weight"
) -> None:
    """What RMSNorm(x) or RMSNorm(x + residual) is made of; ``name`` is the norm weight's."""
    check_operand(op, "x", x)
    if residual is not None:
        check_matrix(op, "residual", residual, x.shape[0], x.shape[1], (x.dtype,), x)
    dtypes = (torch.float32,) if x.dtype == torch.float32 else (torch.float32, x.dtype)
    check_vector(op, name, weight, x.shape[1], dtypes, x)


def check_swiglu(op: str, gate_up: Tensor) -> int:
    """The width of ``silu(gate)·up``."""
    check_operand(op, "gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise RuntimeError(f"{op}: gate_up must be [rows, 2·width], not {list(gate_up.shape)}")
    return gate_up.shape[1] // 2


def check_multiple(op: str, what: str, size: int, divisor: int) -> None:
    """A size that the kernels divide: positive, a multiple of ``divisor``."""
    if size <= 0 or size % divisor:
        raise RuntimeError(f"{op}: {what} {size} must be a multiple of {divisor}")


def check_cached_operand(op: str, name: str, x: Tensor, like: Tensor, q: Tensor) -> None:
    """The new token's queries ``q [B, H·K]``, or its keys or values, as wide as ``like``; the last
    dimension is contiguous."""
    if x.dim() != 2:
        raise RuntimeError(f"{op}: {name} must have 2 dimensions, not shape {list(x.shape)}")
    if x.shape != (q.shape[0], like.shape[1]):
        wanted = [q.shape[0], like.shape[1]]
        raise RuntimeError(f"{op}: {name} must be {wanted}, not {list(x.shape)}")
    _check_kind(op, name, x, FLOATING if x is q else (q.dtype,), q)
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise RuntimeError(f"{op}: {name} must be contiguous in its last dimension")


def check_cache(op: str, name: str, cache: Tensor, keys: Tensor, q: Tensor, k: Tensor) -> None:
    """Keys or values ``[B, G, capacity, K]`` for new ones ``k [B, G·K]`` and queries ``q [B,
    H·K]``, H a multiple of G."""
    batch, size = q.shape[0], k.shape[1]
    if cache.dim() != 4:
        raise RuntimeError(f"{op}: {name} must have 4 dimensions, not shape {list(cache.shape)}")
    if cache.shape != keys.shape:
        raise RuntimeError(f"{op}: {name} must be {list(keys.shape)}, not {list(cache.shape)}")
    if cache.shape[0] != batch or cache.shape[1] * cache.shape[3] != size:
        raise RuntimeError(
            f"{op}: {name} must be [{batch}, heads, capacity, width] with heads·width {size},"
            f" not {list(cache.shape)}"
        )
    if not cache.shape[2] or not cache.shape[3] or cache.shape[3] % 2:
        raise RuntimeError(
            f"{op}: {name} must have places and an even width, not shape {list(cache.shape)}"
        )
    if q.shape[1] % size if size else q.shape[1]:
        raise RuntimeError(
            f"{op}: q must be [{batch}, a multiple of {cache.shape[1]} heads of {cache.shape[3]}],"
            f" not {list(q.shape)}"
        )
    _check_layout(op, name, cache, (q.dtype,), q)


def check_dense(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Of ``like``'s dtype, contiguous, of any shape."""
    _check_layout(op, name, x, FLOATING if x is like else (like.dtype,), like)


def check_scalar(op: str, name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    """Of no dimension, of ``dtype``, on ``like``'s device."""
    if tensor.dim():
        raise RuntimeError(f"{op}: {name} must be a scalar, not of shape {list(tensor.shape)}")
    _check_layout(op, name, tensor, (dtype,), like)


def check_position(op: str, name: str, tensor: Tensor, batch: int, like: Tensor) -> None:
    """int64, one for all sequences or one each ``[B]``, on ``like``'s device."""
    if tensor.dim() and tensor.shape != (batch,):
        raise RuntimeError(
            f"{op}: {name} must be a scalar or [{batch}], not of shape {list(tensor.shape)}"
        )
    _check_layout(op, name, tensor, (torch.int64,), like)


def _check_layout(
    op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], like: Tensor
) -> None:
    _check_kind(op, name, tensor, dtypes, like)
    if not tensor.is_contiguous():
        raise RuntimeError(f"{op}: {name} must be contiguous")


def _check_kind(
    op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], like: Tensor
) -> None:
    if tensor.dtype not in dtypes:
        raise RuntimeError(f"{op}: {name} must be {_one_of(dtypes)}, not {tensor.dtype}")
    if tensor.device != like.device:
        raise RuntimeError(f"{op}: {name} must be on {like.device}, not {tensor.device}")


def _one_of(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _any(size: int | None) -> int | str:
    return "any" if size is None else size
