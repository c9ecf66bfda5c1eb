"""What a trained model can do, by the tasks of others."""

from questtrain.inference.evaluate.score import Score, Scorer

__all__ = ["Score", "Scorer"]
