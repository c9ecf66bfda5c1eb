"""questtrain: pretraining of Llama models with quantized weights and activations (QuEST)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from questtrain.inference.load import load as load
    from questtrain.inference.pack import pack as pack
    from questtrain.quant.conversion import convert as convert
    from questtrain.quant.linear import QuantLinear as QuantLinear
    from questtrain.quant.scale import learned_parameters as learned_parameters

_PUBLIC = {
    "QuantLinear": "questtrain.quant.linear",
    "convert": "questtrain.quant.conversion",
    "learned_parameters": "questtrain.quant.scale",
    "load": "questtrain.inference.load",
    "pack": "questtrain.inference.pack",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: they need torch, and ``--help`` does not."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'questtrain' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
