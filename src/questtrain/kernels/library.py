"""``torch.ops.questtrain``: how a function of `questtrain.kernels.ops` becomes an op.

The function is the op's reference: the specification, and what runs where no library has a kernel.
Run on tensors without values it also says what shapes, dtypes and layouts tracing sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from questtrain.kernels import cpu_library, extension

LIBRARY = torch.library.Library("questtrain", "DEF")  # type: ignore[no-untyped-call]

Function = TypeVar("Function", bound=Callable[..., Any])


class Op(NamedTuple):
    """An op's signature as torch reads it, and its plain-torch function."""

    schema: str
    reference: Callable[..., Any]


OPS: dict[str, Op] = {}
"""Every op by its name."""


def register(
    schema: str, *, fake: Callable[..., Any] | None = None, torchs_own: bool = False
) -> Callable[[Function], Function]:
    """Define the op of ``schema`` with the decorated function as its reference; gives the op.

    ``fake`` says what tracing sees where the reference cannot.
    ``torchs_own`` is an op that torch's kernels serve on every device: no backend forbids it. The
    op's first argument is a tensor or a list of some; a wrong argument is a RuntimeError, as it is
    one of the libraries' kernels (`questtrain.kernels.checks`).
    """
    name = schema.split("(", 1)[0]

    def registered(reference: Function) -> Function:
        run = reference if torchs_own else _admitted(name, reference)
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"questtrain::{name}", fake or reference, lib=LIBRARY)
        OPS[name] = Op(schema, reference)
        op: Function = getattr(torch.ops.questtrain, name).default
        op.__doc__ = reference.__doc__
        return op

    return registered


def has_values(tensor: Tensor) -> bool:
    """Whether a reference may look at the values of ``tensor`` for nothing: they lie on the host,
    and it is none of the tensors without values by which tracing asks for shapes."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def _admitted(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference, which runs where the chosen backend allows it."""

    @wraps(reference)
    def run(*arguments: Any) -> Any:
        first = arguments[0]
        for tensor in first[:1] if isinstance(first, list) else (first,):
            extension.admit_reference(name, tensor.device)
            if tensor.device.type == "cpu":
                cpu_library.check_isa()
        return reference(*arguments)

    return run
