"""A model of random weights to be served, made on its device in the engine's process.

Imports nothing heavy: the server's process, which only hands it on, needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from questtrain.config import TrainConfig, parse_bits
from questtrain.inference.engine.messages import Served, Steps

if TYPE_CHECKING:
    from torch import nn

BOS, UNKNOWN = "<s>", "<unk>"


@dataclass(frozen=True)
class RandomModel:
    """Called, it is an engine of a model of ``config``'s shape and bits, 16 bits in four products a
    block, their blocks compiled if so asked. Its tokenizer, of a word a token, is written into
    ``folder``. Greedy answers never end before ``max_tokens``."""

    config: TrainConfig
    device: str
    max_batch_size: int
    context: int
    compile: bool
    folder: str

    def __call__(self) -> tuple[Steps, Served]:
        from questtrain.data import load_tokenizer
        from questtrain.inference.engine.engine import Engine
        from questtrain.inference.load import TrainedModel

        assert self.config.model.vocab_size is not None
        path = Path(self.folder) / "tokenizer.json"
        write_word_tokenizer(path, self.config.model.vocab_size)
        tokenizer, sha256 = load_tokenizer(path), "random"
        trained = TrainedModel(self._model(), tokenizer, self.config, 0)
        name = f"{self.config.model.name} {self.config.bits}"
        served = Served(name, 0, sha256, sha256, str(path), tokenizer.bos_id, self.config.bits)
        return Engine(trained, self.max_batch_size, self.context), served

    def _model(self) -> nn.Module:
        import torch

        from questtrain.bench.model.random_models import packed_model, stacked_model
        from questtrain.bench.serve.compiled import compile_served_blocks
        from questtrain.device import choose_device
        from questtrain.model import PackedLlama

        device, bits = choose_device(self.device), parse_bits(self.config.bits)
        with torch.no_grad():
            if bits.quantized:
                model = packed_model(self.config.model, bits, device)
            else:
                model = stacked_model(self.config.model, device)
            # The document's end (token 0) has logit 0, which is never the largest of thousands.
            model.get_parameter("lm_head.weight")[0] = 0
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the packed model was made from
        if self.compile and not isinstance(model, PackedLlama):
            compile_served_blocks(model)
        return model


def write_word_tokenizer(path: Path, vocab_size: int) -> None:
    """A ``tokenizer.json`` of ``vocab_size`` tokens, at least three, whose text is a word each; 0
    begins documents, 1 is what no word is."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    words = [BOS, UNKNOWN, *(f"word{token}" for token in range(2, vocab_size))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken(BOS, special=True)])
    tokenizer.save(str(path))
