"""Using what was trained.

The names below are imported on first use: they need torch, and a server, whose engine runs in a
process of its own, does not. `questtrain.load` and `questtrain.pack` are in the modules of their
names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from questtrain.inference.decode import Decoder as Decoder
    from questtrain.inference.generate import generate_text as generate_text
    from questtrain.inference.load import TrainedModel as TrainedModel
    from questtrain.inference.load import load_run as load_run
    from questtrain.inference.pack import block_weight_bytes as block_weight_bytes

_PUBLIC = {
    "Decoder": "questtrain.inference.decode",
    "TrainedModel": "questtrain.inference.load",
    "block_weight_bytes": "questtrain.inference.pack",
    "generate_text": "questtrain.inference.generate",
    "load_run": "questtrain.inference.load",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
