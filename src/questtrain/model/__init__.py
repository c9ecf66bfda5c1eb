"""The Llama of the paper."""

from questtrain.model.cache import Cache, KVCache
from questtrain.model.llama import Llama

__all__ = ["Cache", "KVCache", "Llama"]
