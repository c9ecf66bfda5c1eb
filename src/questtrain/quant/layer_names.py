"""Layers by name: as one knows them, without what wrappers put in front, and which stay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from questtrain.config import is_skipped
from questtrain.errors import UserError, suggestion

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of a dotted name that torch.compile, FSDP and activation checkpointing put there."""

PREFIXES = ("module.", "base_model.model.")
"""What DDP (or an averaged model) and PEFT put in front."""

HEADS = ("lm_head", "embed_out")
"""The last part of a language model's output layer, wherever it stands."""

OUTERMOST_HEADS = ("output", "score", "classifier")
"""The same for a whole name: the model's own child."""

ADAPTER = "lora_"
"""What a part of the name of LoRA's matrices begins with, in PEFT and elsewhere."""

NAMES_SHOWN = 6
"""Of a list of layers in a message."""


def listed(names: Sequence[str]) -> str:
    """``a, b, c and 7 more``"""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def bare_name(name: str) -> str:
    """``_orig_mod.module.layers.0`` → ``layers.0``"""
    bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    while (prefix := next((p for p in PREFIXES if f"{bare}.".startswith(p)), None)) is not None:
        bare = bare[len(prefix) :]
    return bare


def check_no_adapter(name: str) -> None:
    """UserError for a layer that is called like one of LoRA's matrices, whatever its rank."""
    if any(part.startswith(ADAPTER) for part in name.split(".")):
        raise UserError(
            "matrices of an adapter (LoRA), which PEFT saves without their quantizers and merges as"
            " if they were not quantized."
        )


def skip_pattern(name: str) -> str:
    """The pattern that leaves a layer as it is: its name, of an adapter's matrix all of them."""
    parts = name.split(".")
    is_adapter = any(part.startswith(ADAPTER) for part in parts)
    return f"*{ADAPTER}*" if is_adapter else name


def skipped_modules(model: nn.Module, skip: Sequence[str]) -> tuple[set[nn.Module], set[str]]:
    """The modules whose dotted names match a pattern of ``skip``, with all inside them, and the
    full names of parameters that match. UserError for a pattern that matches no name at all."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names = [name for name in (*modules, *parameters) if name]
    chosen: set[str] = set()
    for pattern in skip:
        found = {
            n for n in names if is_skipped(n, [pattern]) or is_skipped(bare_name(n), [pattern])
        }
        if not found:
            raise _no_match(pattern, model, names)
        chosen |= found
    roots = [modules[name] for name in chosen if name in modules]
    return {inner for root in roots for inner in root.modules()}, chosen & set(parameters)


def output_heads(model: nn.Module) -> set[nn.Module]:
    """The output layers that a model names itself (``get_output_embeddings``) or that have one of
    the usual names, with all inside them."""
    heads = []
    for name, module in model.named_modules(remove_duplicate=False):
        bare = bare_name(name)
        is_layer = isinstance(module, nn.Linear) or hasattr(module, "original_module")  # of PEFT
        if bare.rpartition(".")[2] in HEADS or (bare in OUTERMOST_HEADS and is_layer):
            heads.append(module)
        heads += _named_by_itself(module)
    return {inner for head in heads for inner in head.modules()}


def _named_by_itself(module: nn.Module) -> list[nn.Module]:
    """What transformers' models give as their output embeddings."""
    give = getattr(module, "get_output_embeddings", None)
    try:
        head = give() if callable(give) else None
    except (AttributeError, NotImplementedError):  # a body without a head
        return []
    return [head] if isinstance(head, nn.Module) else []


def _no_match(pattern: str, model: nn.Module, names: Sequence[str]) -> UserError:
    bare = [bare_name(name) for name in names]
    choices = dict.fromkeys([*bare, *(name.rpartition(".")[2] for name in bare)])
    linears = [bare_name(n) for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    return UserError(
        f"skip: {pattern!r} matches no layer of this {type(model).__name__} ({listed(linears)})."
        f"{suggestion(pattern, choices)} Patterns are those of a shell, of dotted names:"
        " lm_head, *.o_proj, layers.0.*"
    )
