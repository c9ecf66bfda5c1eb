"""The Llama of the paper."""

from questtrain.model.cache import KVCache
from questtrain.model.llama import Llama

__all__ = ["KVCache", "Llama"]
