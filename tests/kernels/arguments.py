"""Random operands of the ops, and arguments for every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from questtrain.kernels import PackedMatrix, Quantized, container_bits, pack_bits
from questtrain.kernels.formats import int8_codes
from questtrain.kernels.library import OPS

LEVELS, ALPHA, BLOCK, EPSILON = 16, 2.513931, 128, 1e-5
"""How the arguments of `arguments` are quantized."""

WIDTH, COLUMNS = 256, 32
"""K and N of `arguments`: what every op takes."""

WITHOUT_CUDA = ("add_weight_gradient_", "packed_weight_linear")
"""Ops that CUDA's library has no kernel for: torch's serve the one, the other is the CPU's own."""

SERVED_ON_CPUS = (
    "packed_linear",
    "int8_linear",
    "int8_offset_linear",
    "unpack",
    "packed_weight_linear",
    "hadamard_quantize",
    "hadamard_backward",
    "dequantize",
)
"""Ops that the CPU's library has kernels for."""

FUSED_LINEARS = tuple(op for op in OPS if op.endswith("_quantize_linear"))
QUANTIZERS = tuple(op for op in OPS if op.endswith("_quantize"))


def reference_of(op: str) -> Callable[..., Any]:
    """The plain-torch function of an op, whatever library is loaded."""
    return OPS[op].reference


class SparseMatrix(NamedTuple):
    """A 2:4 sparse weight as `int4_sparse_linear` takes it, and its integers, int8 ``[N, K]``."""

    codes: Tensor
    metadata: Tensor
    scales: Tensor
    integers: Tensor


def device_generator(device: str, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def random_rows(
    rows: int, width: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> Tensor:
    """Gaussian rows of different sizes."""
    generator = device_generator(device, seed)
    x = torch.randn(rows, width, device=device, generator=generator)
    return (x * (0.5 + torch.rand(rows, 1, device=device, generator=generator))).to(dtype)


def random_quantized(
    rows: int, width: int, levels: int, device: str = "cpu", packed: bool = False, seed: int = 0
) -> Quantized:
    """Uniformly distributed codes; products of two such matrices are of order 1."""
    generator = device_generator(device, seed)
    shape = (rows, width)
    indices = torch.randint(levels, shape, dtype=torch.uint8, device=device, generator=generator)
    codes = int8_codes(indices, levels)
    size = width**0.25 * levels**0.5
    return Quantized(
        pack_bits(indices, container_bits(levels)) if packed else codes,
        (0.5 + torch.rand(rows, device=device, generator=generator)) / size,
        codes.sum(1, dtype=torch.int32),
        torch.empty(rows, 0, dtype=torch.uint8, device=device),
    )


def random_weight(
    rows: int, width: int, levels: int, device: str = "cpu", seed: int = 1
) -> PackedMatrix:
    return PackedMatrix(*random_quantized(rows, width, levels, device, True, seed)[:3], levels)


def random_sparse_weight(rows: int, width: int, device: str = "cpu", seed: int = 1) -> SparseMatrix:
    """2 of each 4 pairs of values kept, every choice of them alike."""
    generator = device_generator(device, seed)
    choices = torch.combinations(torch.arange(4, device=device))
    chosen = torch.randint(6, (rows, width // 8), device=device, generator=generator)
    pairs = choices[chosen]  # [N, K/8, 2]
    kept = random_quantized(rows, width // 2, 16, device, seed=seed)
    groups = torch.zeros(rows, width // 8, 4, 2, dtype=torch.int8, device=device)
    places = pairs.unsqueeze(-1).expand(-1, -1, -1, 2)
    groups.scatter_(2, places, kept.codes.reshape(rows, width // 8, 2, 2))
    indices = ((kept.codes + 15) // 2).to(torch.uint8)
    return SparseMatrix(
        pack_bits(indices, 4),
        pack_bits(pairs.flatten(1).to(torch.uint8), 2),
        kept.scales,
        groups.flatten(1),
    )


def arguments(
    op: str,
    device: str = "cpu",
    rows: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    packed: bool = False,
    trust: float | None = 1.1,
) -> tuple[Any, ...]:
    """Arguments that ``torch.ops.questtrain.<op>`` takes on every device."""
    if op in QUANTIZERS:
        operands = _operands(op.removesuffix("_quantize"), device, rows, dtype, seed)
        return (*operands, LEVELS, ALPHA, BLOCK, packed, trust)
    weight = random_weight(COLUMNS, WIDTH, LEVELS, device, seed + 1)
    if op in FUSED_LINEARS:
        operands = _operands(op.removesuffix("_quantize_linear"), device, rows, dtype, seed)
        return (*operands, LEVELS, ALPHA, weight.codes, weight.scales, LEVELS)
    if op == "hadamard_quantize_linear_tile":
        x = random_rows(rows, WIDTH, dtype, device, seed)
        return (x, LEVELS, ALPHA, weight.codes, weight.scales, LEVELS, 0)
    if op == "packed_weight_linear":
        x = random_rows(rows, WIDTH, dtype, device, seed)
        return (x, weight.codes, weight.scales, LEVELS, BLOCK)
    if op == "decode_attention":
        return random_step(rows, dtype, device, seed=seed, kv_heads=2)
    if op in ("rotary_", "join_rotary"):
        return _rotary_arguments(op, device, rows, dtype, seed)
    if op == "unpack":
        return (random_weight(rows, WIDTH, LEVELS, device, seed).codes, LEVELS)
    if op == "cross_entropy_":
        logits = random_rows(rows, WIDTH, dtype, device, seed)
        return (logits, torch.arange(rows, device=device), -100)
    if op == "dequantize":
        return (*random_quantized(rows, WIDTH, LEVELS, device, packed, seed)[:2], LEVELS, dtype)
    if op == "fp8_transpose":  # of rows by 16
        return (random_quantized(16 * rows, WIDTH, LEVELS, device, packed, seed).codes, LEVELS)
    if op == "fp8_gradients":
        x_scales = random_quantized(16 * rows, WIDTH, LEVELS, device, seed=seed).scales
        grad = random_rows(16 * rows, COLUMNS, torch.bfloat16, device, seed)
        return (grad, weight.scales, x_scales)
    if op == "adamw_":
        return random_adamw((rows, WIDTH), (rows,), device=device, seed=seed)
    if op == "add_weight_gradient_":
        total = random_rows(COLUMNS, WIDTH, torch.float32, device, seed)
        grad = random_rows(rows, COLUMNS, dtype, device, seed + 1)
        return (total, grad, random_rows(rows, WIDTH, dtype, device, seed + 2), False, None)
    if op.endswith("_backward"):
        return _backward_arguments(op, device, rows, dtype, seed)
    return _linear_arguments(op, device, rows, dtype, seed, weight)


def random_adamw(
    *shapes: tuple[int, ...], device: str = "cpu", seed: int = 0, steps: int = 7
) -> tuple[Any, ...]:
    """Weights of such shapes after ``steps`` steps, the one that is to be made counted."""
    generator = device_generator(device, seed)

    def normal(size: float) -> list[Tensor]:
        return [size * torch.randn(*s, generator=generator, device=device) for s in shapes]

    weights, grads, means = normal(1.0), normal(1e-2), normal(1e-3)
    squares = [tensor.square() for tensor in normal(1e-2)]
    counts = [torch.full((), float(steps), device=device) for _ in shapes]
    divisor = torch.full((), 3.0, device=device)
    return (weights, grads, means, squares, counts, divisor, 1e-3, 0.9, 0.95, 1e-8, 0.1)


def random_step(
    batch: int,
    dtype: torch.dtype,
    device: str = "cpu",
    heads: int = 4,
    width: int = 64,
    capacity: int = 40,
    position: int = 17,
    seed: int = 0,
    kv_heads: int | None = None,
) -> tuple[Tensor, ...]:
    """Arguments of `decode_attention`: slices of one product, a cache that is NaN from
    ``position`` on, any angles; ``kv_heads`` as many as ``heads``, unless given."""
    kv_heads = kv_heads or heads
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    qkv = random_rows(batch, sum(sizes), dtype, device, seed)
    shape = (batch, kv_heads, capacity, width)
    generator = device_generator(device, seed + 1)
    keys, values = (
        torch.randn(shape, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    for cache in (keys, values):
        cache[:, :, position:] = torch.nan
    angles = torch.randn(width // 2, device=device, generator=generator).repeat(2)
    place = torch.tensor(position, device=device)
    return (*torch.split(qkv, sizes, 1), keys, values, place, angles.cos(), angles.sin())


def random_steps(
    positions: Sequence[int],
    dtype: torch.dtype,
    device: str = "cpu",
    heads: int = 4,
    width: int = 64,
    capacity: int = 40,
    seed: int = 0,
    kv_heads: int | None = None,
) -> tuple[Tensor, ...]:
    """The same of sequences at positions of their own, each with angles of its own."""
    batch, shape = len(positions), (heads, width, capacity, capacity, seed, kv_heads)
    q, k, v, keys, values, *_ = random_step(batch, dtype, device, *shape)
    for index, position in enumerate(positions):
        for cache in (keys, values):
            cache[index, :, max(position, 0) :] = torch.nan
    places = torch.tensor(list(positions), dtype=torch.int64, device=device)
    return (q, k, v, keys, values, places, *random_angles(batch, width, device, seed + 2))


def _operands(form: str, device: str, rows: int, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """What is quantized: x itself, its RMSNorm, that of x + residual, or SwiGLU."""
    x = random_rows(rows, WIDTH, dtype, device, seed)
    weight = 1 + 0.1 * random_rows(1, WIDTH, torch.float32, device, seed + 2).flatten()
    match form:
        case "hadamard":
            return (x,)
        case "rmsnorm":
            return (x, weight, EPSILON)
        case "add_rmsnorm":
            return (x, random_rows(rows, WIDTH, dtype, device, seed + 3), weight, EPSILON)
        case _:
            return (random_rows(rows, 2 * WIDTH, dtype, device, seed),)


def random_mask(rows: int, width: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """A bit for each of ``[rows, width]``, half of them set."""
    generator = device_generator(device, seed)
    shape = (rows, width // 8)
    return torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)


def random_angles(
    length: int, width: int, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """cos and sin ``[length, width]``, halves repeated."""
    angles = random_rows(length, width // 2, torch.float32, device, seed).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotary_arguments(
    op: str, device: str, batch: int, dtype: torch.dtype, seed: int
) -> tuple[Any, ...]:
    length, heads, kv_heads, width = 5, 4, 2, 32
    parts = [
        random_rows(batch * length, n * width, dtype, device, seed + i).reshape(
            batch, length, n, width
        )
        for i, n in enumerate((heads, kv_heads, kv_heads))
    ]
    cos, sin = random_angles(length, width, device, seed + 3)
    if op == "join_rotary":
        return (*parts, cos, sin)
    return (torch.cat(parts, dim=2).flatten(2), cos, sin, heads, kv_heads)


def _backward_arguments(
    op: str, device: str, rows: int, dtype: torch.dtype, seed: int
) -> tuple[Any, ...]:
    grad = random_rows(rows, WIDTH, dtype, device, seed)
    mask = random_mask(rows, WIDTH, device, seed)
    match op:
        case "rmsnorm_backward":
            x, residual_grad, weight, _ = _operands("add_rmsnorm", device, rows, dtype, seed + 1)
            return (grad, mask, x, weight, EPSILON, BLOCK, residual_grad)
        case "swiglu_backward":
            return (grad, mask, *_operands("swiglu", device, rows, dtype, seed + 1), BLOCK)
        case _:
            return (grad, mask, BLOCK)


def _linear_arguments(
    op: str, device: str, rows: int, dtype: torch.dtype, seed: int, weight: PackedMatrix
) -> tuple[Any, ...]:
    x = random_quantized(rows, WIDTH, LEVELS, device, op.startswith("int4"), seed)
    match op:
        case "packed_linear":
            return (*x[:3], weight.codes, weight.scales, LEVELS, dtype)
        case "int4_linear":
            return (*x[:3], weight.codes, weight.scales, weight.sums, dtype)
        case "int4_sparse_linear":
            sparse = random_sparse_weight(COLUMNS, WIDTH, device, seed + 1)
            return (*x[:2], sparse.codes, sparse.metadata, sparse.scales, dtype)
    dense = random_quantized(COLUMNS, WIDTH, LEVELS, device, seed=seed + 1)
    if op == "int8_offset_linear":
        return (*x[:3], *dense[:3], 256, LEVELS, dtype)
    tile = (0,) if op == "int8_linear_tile" else ()
    return (*x[:2], dense.codes, dense.scales, dtype, *tile)


def assert_a_row_without_a_number_stays_alone(product: Callable[..., Tensor], op: str) -> None:
    """A row whose scale is NaN gives a row of NaN, and changes no other: of ``product``, which is
    ``op`` by whatever serves it."""
    x, scales, *rest = arguments(op, rows=5)
    expected = product(x, scales, *rest)
    spoiled = scales.clone()
    spoiled[2] = torch.nan
    y = product(x, spoiled, *rest)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
