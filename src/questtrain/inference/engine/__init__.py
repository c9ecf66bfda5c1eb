"""Many requests at once on one model: continuous batching, one engine a model."""
