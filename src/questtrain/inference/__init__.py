"""Using what was trained."""

from questtrain.inference.decode import Decoder
from questtrain.inference.generate import generate_text
from questtrain.inference.load import TrainedModel, load, load_run
from questtrain.inference.pack import block_weight_bytes, pack

__all__ = [
    "Decoder",
    "TrainedModel",
    "block_weight_bytes",
    "generate_text",
    "load",
    "load_run",
    "pack",
]
