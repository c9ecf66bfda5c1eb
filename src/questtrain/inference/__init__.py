"""Using what was trained."""

from questtrain.inference.generate import generate_text
from questtrain.inference.load import TrainedModel, load, load_run

__all__ = ["TrainedModel", "generate_text", "load", "load_run"]
