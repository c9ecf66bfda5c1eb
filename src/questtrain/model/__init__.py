"""The Llama of the paper."""

from questtrain.model.attention import Rotary, causal_attention
from questtrain.model.cache import Cache, LayerCache
from questtrain.model.fused_llama import FusedLlama
from questtrain.model.llama import Llama

__all__ = ["Cache", "FusedLlama", "LayerCache", "Llama", "Rotary", "causal_attention"]
