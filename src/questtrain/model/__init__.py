"""The Llama of the paper: the readable one, and the stacked ones that training and serving run."""

from questtrain.model.cache import StaticCache
from questtrain.model.fused_llama import FusedLlama
from questtrain.model.llama import Llama
from questtrain.model.packed_llama import PackedLlama
from questtrain.model.slotted_cache import SlottedCache
from questtrain.model.stacked_llama import StackedLlama

__all__ = ["FusedLlama", "Llama", "PackedLlama", "SlottedCache", "StackedLlama", "StaticCache"]
