"""Many requests at once on one model: continuous batching.

`questtrain.inference.engine.requests` imports no torch; `questtrain.inference.engine.engine` is the
engine.
"""
